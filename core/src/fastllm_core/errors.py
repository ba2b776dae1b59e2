"""Every error that fastllm raises on purpose.

    FastllmError
    |-- UserError                 the person can mend it: command line exits with 2
    |   |-- ConfigError           a key, a value or a file of the configuration
    |   |-- DeviceError           no such device or dtype here
    |   |-- ModelError            a model, tokenizer or weight file does not fit
    |   |   `-- UnsupportedModel  the architecture lacks an operation that a method needs
    |   |-- RequestError          one request asks for the impossible (empty prompt, top_p = 7)
    |   |   `-- ContextLengthError  prompt and new tokens do not fit the model's context
    |   |-- PluginNotFound        no installed plugin has that name
    |   `-- PluginConflict        two plugins offer the same name or the same role
    `-- PluginError               the plugin's author must mend it: command line exits with 1
        |-- PluginLoadError       a selected plugin failed to import
        `-- PluginContractError   a plugin does not fit the hook specs, the API version or a protocol

A message is one line that says what was wrong, which key, file or plugin it was, and what to do.
"""


class FastllmError(Exception):
    """Root of the tree: `except FastllmError` catches everything that fastllm raises on purpose."""


class UserError(FastllmError):
    """Something that the person who runs fastllm can mend."""


class ConfigError(UserError):
    """A configuration key, value or file is wrong; the message starts with its dotted path."""


class DeviceError(UserError):
    """The asked device or dtype does not exist here; the message lists what does."""


class ModelError(UserError):
    """A model, tokenizer or weight file is missing, broken or does not fit the others."""


class UnsupportedModel(ModelError):
    """The architecture lacks an operation that is needed; the message names the operation."""


class RequestError(UserError):
    """A single request cannot be served as asked."""


class ContextLengthError(RequestError):
    """Prompt and new tokens do not fit into the model's context."""


class PluginNotFound(UserError):
    """No installed plugin has that name."""


class PluginConflict(UserError):
    """Two plugins offer the same name or the same role and nothing says which one to take."""


class PluginError(FastllmError):
    """A plugin is at fault; its author must mend it."""


class PluginLoadError(PluginError):
    """A selected plugin failed to import."""


class PluginContractError(PluginError):
    """A plugin does not fit the hook specs, the API version, or a protocol."""
