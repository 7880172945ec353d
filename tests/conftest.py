pytest_plugins = ["golden_plugin"]
