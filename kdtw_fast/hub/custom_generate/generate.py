"""transformers' ``model.generate(…, custom_generate=…, trust_remote_code=True)`` runs this: kdtw_fast's native loop."""

from kdtw_fast.hub import generate as generate
