"""The embedded default: a small model and a controlled data set, both made by this project.

`world` holds invented words and their latent attributes, `families` the task families of the general
pool, `domains` the four scarce domains, `pretraining` the text the model grew up on; `paths` says where
the committed files (`data/`, `model/`) lie. The generator uses the standard library only and imports no
other package; `scripts/make_builtin_data.py` and `scripts/make_builtin_model.py` write the files.
"""
