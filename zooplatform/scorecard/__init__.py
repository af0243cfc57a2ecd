"""The report card of generators: what their networks can do, and how new they are."""
