"""Where arrays live: the device mesh and the sharding rules, which are data rather than code.

The lowest room: may import `errors` only.
"""
