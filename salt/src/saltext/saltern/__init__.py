"""Salt's side of saltern. Salt's loader finds ``returners/`` beside this file."""
