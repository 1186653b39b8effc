"""What a run will cost, before it starts: tokens, FLOPs, device-hours, memory a device and disk, each with its grounds.

What is at hand is counted: the model's config.json, the records with the model's tokenizer, the devices. The rest is
taken from the config's section `estimate`, and every value so taken is listed as an assumption. Stands beside
`pipeline` and may import stages, config and every room; nothing but the command line imports it.
"""
