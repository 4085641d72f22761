"""Topics of the built-in documents, as labels, and the topic to forget."""

OTHER = "other"

_MODULES = {
    "archives": "bz2 gzip lzma shutil tarfile zipapp zipfile zipimport",
    "code": "ast code codeop dis importlib inspect opcode pickle pickletools pkgutil pyclbr pydoc runpy symtable "
    "tokenize types typing dataclasses enum functools",
    "concurrency": "asyncio concurrent contextvars multiprocessing queue sched selectors signal subprocess threading "
    "_threading_local",
    "mail": "email imaplib mailbox mailcap mimetypes nntplib poplib smtpd smtplib",
    "markup": "_markupbase html xml",
    "network": "cgi cgitb ftplib http ipaddress socket socketserver ssl telnetlib urllib webbrowser wsgiref xmlrpc",
    "numbers": "_pydecimal _pydatetime _strptime calendar cmath datetime decimal fractions math numbers random "
    "statistics zoneinfo",
    "reference": "pydoc_data",
    "testing": "bdb cProfile doctest pdb profile pstats timeit trace unittest",
}
_TOPIC = {module: topic for topic, modules in _MODULES.items() for module in modules.split()}

LABELS = (*sorted(_MODULES), OTHER)
"""The labels of `data=builtin_labelled`, in the order of their roles."""
FORGET = "concurrency"
"""The topic to forget under `data=builtin_roles`; the other documents are to be retained."""


def topic_of(name: str) -> str:
    """The topic of a document by its name (`json.decoder`, `pydoc_data.topics:lambda`)."""
    return _TOPIC.get(name.partition(".")[0], OTHER)
