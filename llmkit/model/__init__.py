"""One transformer for decoders and encoders: its architecture, its weights on disk, and generation with it.

Modules, from the data to the machine: `config` (the architecture, no torch), `spec` (what a person writes in YAML, no
torch), `families` (names and settings of the Hugging Face families, no torch), `transformer` (the module), `heads`,
`load` and `save` (Hugging Face directories), `generation` (the sampling engine).
"""
