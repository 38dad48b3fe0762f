"""The pre-flight checks, before anything is trained."""
