"""Write the project's own prompt set: `distill/prompts/train.jsonl` and `heldout.jsonl`.

    .venv/bin/python benchmarks/make_prompts.py            # write both files
    .venv/bin/python benchmarks/make_prompts.py --check    # write nothing, fail if they differ

One kind of traffic: somebody asks an assistant about Python's standard library. Most prompts are a
template filled with a function's name, or with its name and the first sentences of its
documentation string; the rest are written by hand. The functions are listed below one by one,
each looked at, because many documentation strings are no prose (a bare signature, a table, a
doctest). The wording of the strings changes between Python versions, so the script asks for the
version that the committed files were made with.
"""

from __future__ import annotations

import argparse
import inspect
import json
import pydoc
import random
import re
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "distill" / "prompts"
PYTHON = (3, 11)
SEED = 20240607
MAX_DOC_WORDS = 60
MAX_PROMPT_WORDS = 120

QUOTED_TEMPLATES = (
    "Here is the documentation of `{name}`:\n\n{doc}\n\nSummarise it in plain words.",
    "Rewrite this docstring of `{name}` for someone who is new to Python:\n\n{doc}",
    "Read this description of `{name}` and write a short example that shows it at work.\n\n{doc}",
    "I don't understand the documentation of `{name}`:\n\n{doc}\n\nPlease explain it step by step.",
    "Python's help says this about `{name}`:\n\n{doc}\n\nWhen would I use it in a real program?",
)
ARGUMENTS = "Which arguments can I pass to `{name}`, and what do I get back?"
NAMED_TEMPLATES = (
    "What does `{name}` do? Answer in two or three sentences.",
    "Explain `{name}` to a beginner and give a short example.",
    "Show a short, complete example that uses `{name}`, and say what it prints.",
    "When would I use `{name}`? Give one realistic situation.",
    "What mistakes do people make with `{name}`, and how can I avoid them?",
    ARGUMENTS,
    "In one sentence, what is `{name}` for? Then show one line of code that uses it.",
    "Write a small function with a docstring that makes good use of `{name}`.",
)

# Functions whose documentation is quoted, with the number of its first sentences that are.
TRAIN_QUOTED = """
all:2 any:2 callable:2 filter:2 inspect.getmembers:2 hash:2 isinstance:2 iter:3 max:3 next:2 repr:2
round:3 sorted:2 str.capitalize:2 str.center:2 str.count:2 str.endswith:3 str.expandtabs:2
str.format_map:2 str.isalpha:2 str.isidentifier:2 str.join:3 str.removeprefix:3 str.splitlines:2
str.strip:2 str.title:2 str.zfill:2 list.pop:2 list.sort:3 dict.setdefault:2
float.as_integer_ratio:3 math.comb:2 math.copysign:1 math.dist:3 math.fsum:2 math.modf:2 math.prod:3
statistics.geometric_mean:2 statistics.multimode:2 statistics.quantiles:3 itertools.chain:1
itertools.compress:2 itertools.cycle:2 itertools.dropwhile:2 itertools.islice:2 itertools.starmap:1
functools.lru_cache:3 functools.singledispatch:2 collections.Counter:3
collections.Counter.most_common:2 collections.OrderedDict.move_to_end:2 collections.deque.rotate:2
heapq.heappushpop:2 bisect.insort:2 random.choices:2 random.gauss:3 random.seed:3 textwrap.indent:3
textwrap.wrap:2 re.findall:2 re.fullmatch:1 re.split:2 re.sub:2 time.gmtime:2 os.getenv:2
os.makedirs:3 os.scandir:2 os.path.join:3 os.path.split:3 pathlib.Path.relative_to:2
pathlib.Path.rename:3 pathlib.Path.with_suffix:3 pathlib.Path.joinpath:1 shutil.copyfile:2
shutil.make_archive:2 shutil.move:3 shutil.which:1 tempfile.mkstemp:2 operator.attrgetter:3
fractions.Fraction:2 decimal.localcontext:2 secrets.compare_digest:2 base64.urlsafe_b64encode:4
html.escape:2 difflib.get_close_matches:1 difflib.SequenceMatcher.ratio:2 hashlib.file_digest:2
zipfile.is_zipfile:2 dataclasses.asdict:1 inspect.getsource:4 logging.getLogger:2
logging.captureWarnings:2 subprocess.check_output:3 subprocess.run:2 threading.Barrier:3
threading.Condition:2 queue.Queue.get:3 asyncio.Queue:3 asyncio.run:3 asyncio.wait_for:3
urllib.parse.urlencode:2 unicodedata.lookup:3 ast.literal_eval:2 configparser.ConfigParser.read:2
warnings.catch_warnings:3 sys.exit:3 sys.getrecursionlimit:3 gc.collect:3 cmath.polar:1
"""
TRAIN_NAMED = """
abs bin chr enumerate input len min open ord pow print range reversed slice sum type str.encode
str.isdigit str.replace str.split list.insert list.remove list.reverse dict.items dict.pop
dict.update set.intersection set.union int.from_bytes bytes.decode math.ceil math.gcd math.hypot
math.isqrt statistics.median statistics.stdev itertools.combinations itertools.permutations
itertools.product functools.partial functools.wraps functools.total_ordering
functools.cached_property collections.defaultdict collections.deque heapq.heapify heapq.nlargest
random.shuffle textwrap.fill re.compile re.escape json.loads csv.DictReader
datetime.datetime.strftime datetime.timedelta datetime.date.today time.monotonic calendar.isleap
os.getcwd os.path.basename os.path.getsize pathlib.Path.mkdir pathlib.Path.read_text shutil.copytree
contextlib.ExitStack contextlib.contextmanager shlex.split string.Template struct.pack enum.auto
dataclasses.replace traceback.format_exc argparse.ArgumentParser threading.Lock asyncio.sleep
concurrent.futures.ThreadPoolExecutor urllib.parse.urlparse uuid.uuid4 timeit.timeit
graphlib.TopologicalSorter typing.NamedTuple
"""
# Chosen so that no function with nearly the same documentation is among those for training:
# `str.partition` is here, so `str.rpartition` is in neither list.
HELDOUT_QUOTED = """
collections.ChainMap:2 dict.popitem:3 functools.reduce:2 getattr:2 heapq.merge:2
calendar.monthcalendar:2 os.path.splitext:3 queue.Queue.join:3 random.sample:2 platform.system:3
secrets.token_hex:3 set.discard:2 shutil.disk_usage:2 statistics.harmonic_mean:3 str.partition:4
struct.iter_unpack:3 textwrap.dedent:2 threading.Semaphore:3 typing.cast:3 unicodedata.normalize:2
"""
HELDOUT_NAMED = """
bytes.hex contextlib.suppress datetime.timedelta.total_seconds divmod enum.Flag inspect.signature
itertools.accumulate math.isclose operator.itemgetter os.walk pathlib.Path.iterdir str.casefold
urllib.parse.urljoin zip
"""
WITHOUT_ARGUMENTS = """
contextlib.contextmanager datetime.date.today datetime.timedelta.total_seconds dict.items enum.auto
functools.cached_property functools.total_ordering list.reverse os.getcwd pathlib.Path.iterdir
str.casefold str.isdigit time.monotonic uuid.uuid4
"""

# Written by hand; the key becomes the id.
TRAIN_HAND: dict[str, str] = {
    "read-lines": "How do I read a text file line by line without loading all of it into memory?",
    "sort-records": "How do I sort a list of dictionaries by the value of one key?",
    "count-words": "How do I count how often each word occurs in a text?",
    "merge-dicts": "How do I merge two dictionaries, and which value wins if both have a key?",
    "flatten": "How do I flatten a list of lists into one list with the standard library?",
    "dedupe": "How do I remove duplicates from a list and keep the original order?",
    "json-datetime": "How do I write a dictionary that contains a `datetime.datetime` as JSON?",
    "parse-date": 'How do I turn the string "2024-03-15" into a date object?',
    "days-between": "How do I work out the number of days between two dates?",
    "temporary-file": "How do I create a temporary file that is deleted when I close it?",
    "run-command": "How do I run a shell command from Python and get its output as a string?",
    "environment": "How do I set an environment variable for a child process only?",
    "measure-time": "How do I measure how long a function takes to run?",
    "find-files": "How do I find all text files in a folder and in its subfolders?",
    "csv-columns": "How do I read one column of a CSV file that has a header row?",
    "unpack-zip": "How do I list the files in a ZIP archive and extract only one of them?",
    "password": "How do I generate a random password of 16 letters and digits that is safe to use?",
    "command-line": "How do I add an optional `--verbose` flag to a command-line script?",
    "log-to-file": "How do I write log messages with a timestamp to a file?",
    "memoise": "How do I cache the results of a slow function so that it runs once per argument?",
    "parallel-downloads": "How do I run ten slow downloads at the same time with threads?",
    "cpu-bound": "How do I use all CPU cores for a function that only does arithmetic?",
    "coroutine-timeout": "How do I give up on a coroutine that takes longer than five seconds?",
    "chunks": "How do I split a long list into chunks of 100 items?",
    "money": "How do I add up amounts of money without rounding errors?",
    "find-numbers": "How do I find all whole numbers in a text with a regular expression?",
    "sqlite-insert": "How do I insert many rows into an SQLite table safely?",
    "hash-file": "How do I compute the SHA-256 hash of a large file?",
    "reverse-string": "How do I reverse a string, and how do I check that it is a palindrome?",
    "dataclass-list": "How do I give a field of a dataclass an empty list as its default value?",
    "ini-file": "How do I read settings from an INI file and use defaults for missing ones?",
    "query-string": "How do I get the value of one parameter out of a URL's query string?",
    "nested-copy": "I copied a nested list, but changing the copy also changes the original. Why?",
    "exception-text": "How do I turn an exception with its traceback into a string?",
    "capture-print": "How do I capture what a function prints so that I can test it?",
    "pretty-json": "How do I print a JSON document with indentation and sorted keys?",
    "is-number": "How do I check whether a string can be converted to a float?",
    "last-lines": "How do I keep only the last ten lines of a log file with `collections.deque`?",
    "priority": "How do I process tasks in order of priority with a heap?",
    "random-repeat": "How do I make a program that uses random numbers give the same result twice?",
    "wrap-text": "How do I break a long paragraph into lines of at most 70 characters?",
    "home-folder": "How do I build the path of a file in the user's home folder?",
    "append-extend": "What is the difference between `list.append` and `list.extend`?",
    "copies": "What is the difference between `copy.copy` and `copy.deepcopy`?",
    "find-index": "What is the difference between `str.find` and `str.index`?",
    "sort-sorted": "What is the difference between `list.sort` and `sorted`?",
    "dump-dumps": "What is the difference between `json.dump` and `json.dumps`?",
    "match-search": "What is the difference between `re.match` and `re.search`?",
    "clocks": "What is the difference between `time.time` and `time.perf_counter`?",
    "threads-processes": "What is the difference between threads and processes in Python?",
    "get-index": "Why would I call `dict.get` when I can write square brackets?",
    "group-sorted": "Why does `itertools.groupby` need its input to be sorted first?",
    "map-once": "Why is the result of `map` empty when I loop over it a second time?",
    "mutable-default": "Why is an empty list a bad default value for a function's argument?",
}
HELDOUT_HAND: dict[str, str] = {
    "uneven-lists": "How do I loop over two lists of unequal length and fill in what is missing?",
    "remove-folder": "How do I delete a folder together with everything that is in it?",
    "aligned-columns": "How do I print numbers in columns that line up at the decimal point?",
    "bisect-sides": "How do `bisect.bisect_left` and `bisect.bisect_right` differ?",
    "remove-rmdir": "What is the difference between `os.remove` and `os.rmdir`?",
    "timestamp": "How do I convert a Unix timestamp to a readable date in UTC?",
    "at-exit": "How do I make sure that a function is called when my program ends?",
    "weak-cache": "How do I write a cache that does not keep its objects alive?",
    "compare-files": "How do I compare two text files and show the lines that differ?",
    "subclass-check": "How do I check whether one class is derived from another?",
}

Messages = list[dict[str, str]]


def chat(*turns: str, system: str | None = None) -> Messages:
    """Messages from turns that alternate, the user first."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns)]
    return [{"role": "system", "content": system}, *messages] if system else messages


BRIEF = "You are a Python tutor. Answer in at most three sentences."
REVIEWER = "You help programmers with Python's standard library. Show code first, then explain it."

TRAIN_CHATS: dict[str, Messages] = {
    "split-whitespace": chat("What does `str.split` do when I give it no argument?", system=BRIEF),
    "zero-pad": chat("How do I pad the number 7 with zeros to the width 3?", system=BRIEF),
    "settings-formats": chat("Which formats of settings can Python read?", system=REVIEWER),
    "queue-workers": chat("How do I share work between three threads?", system=REVIEWER),
    "defaultdict-list": chat(
        "How do I group words by their first letter?",
        "Use `collections.defaultdict` with `list` as its factory, and append each word to the "
        "list of its first letter.",
        "Can you show me the code?",
    ),
    "sum-floats": chat(
        "Why is 0.1 + 0.2 not equal to 0.3?",
        "Because neither 0.1 nor 0.2 can be stored exactly as a binary floating-point number.",
        "How do I get an exact sum then?",
    ),
    "sort-descending": chat(
        "How do I sort a list of names by their length?",
        "Pass the function `len` as the key: `sorted(names, key=len)`.",
        "And how do I get the longest name first?",
    ),
    "path-parts": chat(
        "How do I get the file name out of a path?",
        "Make a `pathlib.Path` of it and read its `name` attribute.",
        "How do I get the name without the extension?",
        system=REVIEWER,
    ),
    "enumerate-start": chat(
        "How do I get the position of each item in a loop?",
        "Loop over `enumerate(items)`, which gives pairs of position and item.",
        "I want to count from one. What do I change?",
    ),
    "cache-clear": chat(
        "How do I remember the results of a function?",
        "Put the decorator `functools.lru_cache` on it.",
        "How do I empty that memory again?",
        system=BRIEF,
    ),
    "most-common": chat(
        "How do I count the letters of a word?",
        "Give the word to `collections.Counter`; it maps each letter to its count.",
        "Which method gives me the three most frequent letters?",
        "The method `most_common`, called with 3.",
        "What does it do with letters that occur equally often?",
    ),
    "context-manager": chat(
        "What is a context manager?",
        "An object for the `with` statement, which sets something up and always cleans it up.",
        "How do I write one with a generator?",
    ),
}
HELDOUT_CHATS: dict[str, Messages] = {
    "terminal-size": chat("How do I find out how wide the terminal window is?", system=BRIEF),
    "pick-columns": chat(
        "How do I pick the values at positions 1 and 3 of every row?",
        "Use `operator.itemgetter(1, 3)`; called with a row it returns both values as a tuple.",
        "How do I use that to sort the rows by these two columns?",
    ),
    "thread-stop": chat(
        "How do I stop a thread from outside?",
        "You cannot stop it by force; let it look at a `threading.Event` from time to time.",
        "Show me a loop that does so.",
        system=REVIEWER,
    ),
    "transpose": chat(
        "How do I walk over two lists together?",
        "Give both to `zip`, which yields one pair at a time.",
        "Can I use it to turn rows into columns?",
    ),
}


def sentences(name: str) -> list[str]:
    """The prose at the head of `name`'s documentation string, one item a sentence."""
    paragraphs = (inspect.getdoc(pydoc.locate(name)) or "").split("\n\n")
    if "->" in paragraphs[0] or re.fullmatch(r"[\w.]+\(.*\)", paragraphs[0]):
        paragraphs = paragraphs[1:]  # a signature, as in "S.count(sub[, start]) -> int"
    text = " ".join(" ".join(paragraphs).split()).split(" >>>")[0].replace("``", "`")
    text = re.sub(r"(?<!\S)\*(\w+)\*(?!\w)", r"\1", text)  # reST emphasis on argument names
    return re.split(r"(?<=[\w)\]'\"`]\.) (?=[A-Z'\"`])", text)


def quote(name: str, count: int) -> str:
    """The first `count` sentences of `name`'s documentation.

    Raises:
        ValueError: They are longer than the limit or do not end like a sentence.
    """
    found = sentences(name)[:count]
    doc = " ".join(found)
    if len(found) < count or len(doc.split()) > MAX_DOC_WORDS or not doc.endswith("."):
        raise ValueError(f"the documentation of {name} cannot be quoted: {doc!r}")
    return doc


def derived(quoted: str, named: str, rng: random.Random) -> list[dict[str, Any]]:
    """One prompt for each listed function; each kind goes round its templates evenly."""
    rows = []
    with_doc = quoted.split()
    rng.shuffle(with_doc)
    for number, entry in enumerate(with_doc):
        name, count = entry.split(":")
        template = QUOTED_TEMPLATES[number % len(QUOTED_TEMPLATES)]
        prompt = template.format(name=name, doc=quote(name, int(count)))
        rows.append({"id": f"quoted/{name}", "prompt": prompt})
    bare = named.split()
    rng.shuffle(bare)
    for number, name in enumerate(bare):
        template = NAMED_TEMPLATES[number % len(NAMED_TEMPLATES)]
        if template == ARGUMENTS and name in WITHOUT_ARGUMENTS.split():
            template = NAMED_TEMPLATES[0]
        rows.append({"id": f"named/{name}", "prompt": template.format(name=name)})
    return rows


def split_rows(
    quoted: str,
    named: str,
    hand: dict[str, str],
    chats: dict[str, Messages],
    seed: int,
) -> list[dict[str, Any]]:
    """All rows of a split, shuffled.

    Raises:
        ValueError: A row is too long, or two rows have one id or one text.
    """
    rng = random.Random(seed)
    rows = derived(quoted, named, rng)
    rows += [{"id": f"hand/{key}", "prompt": prompt} for key, prompt in hand.items()]
    rows += [{"id": f"chat/{key}", "messages": messages} for key, messages in chats.items()]
    texts = [" ".join(m["content"] for m in r.get("messages", [])) or r["prompt"] for r in rows]
    if len(set(texts)) < len(rows) or len({row["id"] for row in rows}) < len(rows):
        raise ValueError("a prompt or an id occurs twice")
    if longest := [text for text in texts if len(text.split()) > MAX_PROMPT_WORDS]:
        raise ValueError(f"longer than {MAX_PROMPT_WORDS} words: {longest[0]!r}")
    rng.shuffle(rows)
    return rows


def main() -> None:
    """Write the two files, or compare them with `--check`."""
    parser = argparse.ArgumentParser(description="Write the project's own prompt set.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail on a difference")
    check = parser.parse_args().check
    if sys.version_info[:2] != PYTHON:
        raise SystemExit(f"the committed prompts quote the documentation of Python {PYTHON}")
    train = split_rows(TRAIN_QUOTED, TRAIN_NAMED, TRAIN_HAND, TRAIN_CHATS, SEED)
    heldout = split_rows(HELDOUT_QUOTED, HELDOUT_NAMED, HELDOUT_HAND, HELDOUT_CHATS, SEED + 1)
    for name, rows in (("train", train), ("heldout", heldout)):
        path = FOLDER / f"{name}.jsonl"
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if not check:
            path.write_text(text, encoding="utf-8")
        elif path.read_text(encoding="utf-8") != text:
            raise SystemExit(f"{path} differs from what this script makes")
        print(f"{path}: {len(rows)} prompts")


if __name__ == "__main__":
    main()
