from .app import PlayServer as PlayServer
from .messages import MessageError as MessageError
from .messages import RecordMessage as RecordMessage
from .messages import ResetMessage as ResetMessage
from .messages import StepMessage as StepMessage
from .messages import UndoMessage as UndoMessage
from .session import PlaySession as PlaySession
from .session import PlayStep as PlayStep
