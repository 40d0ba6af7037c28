"""A study as one YAML file: read, laid out as steps, run, and carried on."""
