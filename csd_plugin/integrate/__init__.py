"""Other training frameworks. Nothing here is imported unless requested by name."""
