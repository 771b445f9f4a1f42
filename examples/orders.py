import asyncio

import ackord


async def main() -> None:
    async with ackord.connect("http://127.0.0.1:7801,http://127.0.0.1:7802") as store:
        await store.create_table("orders", {"customer": str, "order": int})  # no error if it is there
        orders = store.table("orders")

        version = await orders.put(("alice", 1), {"total": 990, "state": "new"})
        row = await orders.get(("alice", 1))  # from any in-sync replica, never stale
        assert row is not None
        print(row.key, row.version == version, row["total"], row["state"])

        await orders.update(("alice", 1), {"state": "paid"}, increment={"tries": 1})
        try:
            await orders.put(("alice", 1), {"state": "lost"}, if_version=version)
        except ackord.Conflict as conflict:
            print("changed meanwhile:", conflict.current)

        async for row in orders.scan(("alice",), limit=100):
            print(row.key, row["state"])


asyncio.run(main())
