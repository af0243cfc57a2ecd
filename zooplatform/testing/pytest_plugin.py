"""Fixtures for plugin authors; loaded in every pytest run of the environment, so nothing heavy is imported here."""
