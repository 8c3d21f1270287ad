"""Export: circuits as smaller models that run without this project."""
