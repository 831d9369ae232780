"""What the inputs and outputs of exported graphs are called: prefixes of a parameter's name."""

STATE, NEW_STATE, GRADIENT = "state.", "new_state.", "gradient."
