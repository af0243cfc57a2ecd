"""Zoo recipes (TOML) and the small built catalog that the README, `zoo demo` and the tests use."""
