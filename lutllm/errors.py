"""Exceptions a user can cause. Each message names the thing, the value, the rule and the fix."""


class LutLLMError(Exception):
    """Base of every error that is the user's to mend; the command line prints it and exits 2."""


class ConfigError(LutLLMError):
    """A configuration value, or a combination of them, is not allowed."""


class CheckpointError(LutLLMError):
    """A checkpoint is missing, truncated, corrupt or of an unsupported kind."""


class ArtifactError(LutLLMError):
    """An artifact or an exported design is missing, corrupt or not what it claims to be."""


class ResourceError(LutLLMError):
    """The machine lacks memory, disk or a tool that the job needs."""
