"""actorbot inside bot libraries: the libraries are real, and only what they would send over the
network is made up.
"""
