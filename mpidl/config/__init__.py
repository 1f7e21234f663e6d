"""The run configuration: a TOML file, checked before anything starts."""
