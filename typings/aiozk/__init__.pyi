from aiozk import connection as connection
from aiozk import exc as exc
from aiozk import protocol as protocol
