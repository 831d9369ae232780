"""The command line and the programs behind it: demo, export, coordinator, device, broker, profile."""
