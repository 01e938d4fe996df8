from actorbot.cluster._log import Log


class RedisLog(Log):  # type: ignore
    def __init__(self, url: str, cluster: str) -> None: ...
