"""The systems that the service is measured against, each in a virtual environment and processes of its own."""
