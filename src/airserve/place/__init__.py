"""Where models and the network meet: cut, profile, plan, deploy."""
