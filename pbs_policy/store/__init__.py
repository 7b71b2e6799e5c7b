"""Redis, and how it is asked: one server, Sentinel's master, or a Cluster. What its keys mean is said in `table`.

`connect` is redis-py as everybody but the hot path uses it, and finds the master for all. `lookups`, `redis_line`,
`batch` and `redis_connector` are the service's hot path: asynchronous, in batches.
"""
