"""Where arrays live: the device mesh, the sharding rules, which are data rather than code, and the processes of a run
that spans several hosts.

May import `errors` only.
"""
