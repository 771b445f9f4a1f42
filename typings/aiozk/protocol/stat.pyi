class Stat:
    created_zxid: int
    version: int
    child_version: int
    ephemeral_owner: int
    def __init__(self, *, version: int, child_version: int, ephemeral_owner: int) -> None: ...
