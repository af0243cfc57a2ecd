"""Table definitions: one versioned JSON file per table; read through `zooplatform.schema`."""
