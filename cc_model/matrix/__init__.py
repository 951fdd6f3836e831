"""The fit of the Transform Matrix."""
