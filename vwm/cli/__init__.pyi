from .class_signatures import ClassSignature as ClassSignature
from .class_signatures import SourceModule as SourceModule
from .commands import CLICommand as CLICommand
from .compare_agents import RunGroup as RunGroup
from .parser import CommandParser as CommandParser
from .parser import UsageError as UsageError
from .signatures import CommandParameter as CommandParameter
from .signatures import CommandSignature as CommandSignature
