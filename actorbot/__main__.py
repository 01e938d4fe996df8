from actorbot.cli import main

main()
