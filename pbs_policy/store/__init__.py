"""Redis, and how it is asked: one server, Sentinel's master, or a Cluster. What its keys mean is said in `table`.

`lookups`, `redis_line` and `redis_connector` are the service's: asynchronous, in batches. `redis_client` and
`redis_socket` are the command line's. Both ask what `question` says, of the master that `redis_master` finds.
"""
