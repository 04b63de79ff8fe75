"""The exception tree: what a user can fix. What only we can break is an assert."""


class RungError(Exception):
    """Base of every error with a sentence for the user: the value, the limit and the way out."""

    exit_code = 2


class ConfigError(RungError):
    """A recipe, a config file or an option is wrong; names the file and line where it can."""


class DataError(RungError):
    """Input data is missing, empty, unreadable or of no known shape."""


class ArtefactError(RungError):
    """An artefact is unknown, half written, damaged, or of the wrong kind for its role."""


class ResourceError(RungError):
    """Not enough memory or disk, or no device of the kind asked for."""


class EngineError(RungError):
    """An engine outside of this process (a server at a url) cannot be reached, or refuses."""


class TrainingError(RungError):
    """Training cannot go on: the loss stays non-finite, or a stop rule fired."""


class Interrupted(RungError):
    """Stopped by the user after a checkpoint was written; the message says how to go on."""

    exit_code = 130


def first_line(error: Exception) -> str:
    """What a library's error says, in a line: of many lines the others are for its makers."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
