"""One web process: the OpenAI API, the chat page, runs and lineage."""
