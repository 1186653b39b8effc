"""Where arrays live: the device mesh, the sharding rules, which are data rather than code, and the processes of a run
that spans several hosts.

The lowest room: may import `errors` only.
"""
