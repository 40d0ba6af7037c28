"""The model as files and as modules: checkpoint, family, config surgery, walk."""
