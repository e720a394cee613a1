"""Dynamic Path Guidance and its sibling samplers: small, pure, importable into anyone's diffusers code."""
