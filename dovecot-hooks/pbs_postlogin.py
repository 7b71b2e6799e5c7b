# What pbs-postlogin records of a login, and how it tells Redis. Loaded by that script from beside it, never imported
# by the package; the script lets the session go on whatever happens here.
#
# It stands alone, in modules that are built into the interpreter, since it runs at every login: `import socket`
# alone would double the cost. What it shares with the package (settings file, canonical addresses, keys and
# records) is held equal by tests that run the script and read back through the package.
import _signal
import _socket
import _thread
import posix
import time

LOGIN_SECONDS = 0.5  # for everything: settings, the name server, Redis, and to say what went wrong
SAY_SECONDS = 0.1  # of these, the last
REDIS_SECONDS = 0.3  # for all that is said to Redis
TLS = {}  # the context of this login, where there is one
BLANKS = " \t\r\n\v\f"
# As in pbs_policy/address.py. IPv4 addresses are written into the last four bytes behind these two:
V4_MAPPED = bytes(10) + b"\xff\xff"
NAT64 = b"\0\x64\xff\x9b" + bytes(8)
# ::/48, NAT64's 64:ff9b:1::/48, Teredo and 6to4
STRANGERS = (bytes(6), b"\0\x64\xff\x9b\0\1", b"\x20\1\0\0", b"\x20\2")
LOOPBACK6 = bytes(15) + b"\1"


class Failure(Exception):
    """Why this login is not recorded, as a sentence for Dovecot's log."""


class Unwanted(Failure):
    """The same, where nothing went wrong: a login that must not permit anything."""


class NoEnd(BaseException):
    """The time is over. No Exception, since nothing that is tried next may catch it."""


def record(session, file, service):
    """Record this login, or say in one line why not, within LOGIN_SECONDS."""
    if not session:
        say("error: usage: script-login .../pbs-postlogin [-c FILE] SERVICE (by Dovecot, with a session to go on to)")
        posix._exit(64)
    go_on = _signal.signal(_signal.SIGALRM, end)
    seconds = LOGIN_SECONDS - SAY_SECONDS
    line = ""
    try:
        _signal.setitimer(_signal.ITIMER_REAL, seconds)
        try:
            record_login(file, service, posix.environ)
        finally:
            _signal.setitimer(_signal.ITIMER_REAL, 0)
    except Unwanted as reason:
        line = f"info: this login is not recorded: {reason}"
    except Failure as reason:
        line = complaint(str(reason))
    except NoEnd:
        line = complaint(f"no end within {seconds} s")
    except Exception as error:  # noqa: BLE001 - whatever it is, its kind is worth knowing, and the session goes on
        line = complaint(f"{type(error).__name__}: {error}")
    if posix.environ.get(b"LC_CTYPE") == b"C.UTF-8":
        posix.unsetenv(b"LC_CTYPE")  # put there by Python itself (PEP 538): no business of the session's
    # From here on the alarm starts the session.
    _signal.signal(_signal.SIGALRM, go_on)
    if line:
        _signal.setitimer(_signal.ITIMER_REAL, SAY_SECONDS)
        say(line)


def end(*_):
    raise NoEnd


def complaint(reason):
    return "error: this login is not recorded: " + reason


def say(line):
    # One write, ended by a newline: Dovecot loses a last line without one.
    text = "".join([letter if " " <= letter <= "~" else "?" for letter in line[:550]])
    try:
        posix.write(2, ("pbs-postlogin: " + text + "\n").encode())
    except OSError:
        pass


def record_login(file, service, environment):
    """Record the login that Dovecot describes in `environment` (bytes), by the settings in `file`.

    Raises Failure, or whatever the system says.
    """
    settings = read_settings(file)
    user = environment.get(b"USER", b"")
    address = environment.get(b"IP", b"").decode("ascii", "replace")
    mechanism = environment.get(b"AUTH_MECH", b"")
    # Dovecot sets both at a master user's login. A user database may give MASTER_USER at every login, and then what
    # the user typed (AUTH_USER, where it is not USER letter for letter) has to be the user's own name.
    master = environment.get(b"AUTH_USER", b"") if b"MASTER_USER" in environment else b""
    refuse_unproven(user, master, mechanism, address, settings)
    if b"IP" in environment.get(b"USERDB_KEYS", b"").split():  # Dovecot lets a field of the user database replace it
        raise Failure("the user database has a field named ip, which hides the client's address")
    keys, value, ttl, line = describe(user, address, service, settings)
    if keys:
        tell_redis(settings, [(b"SET", key, value, b"EX", b"%d" % ttl) for key in keys])
    log_login(settings, line)


def refuse_unproven(user, master, mechanism, address, settings):
    """Raise where the login does not prove that its user was there, at this address. `master` is whose password was
    asked for, where it may be another's."""
    if mechanism.upper() == b"ANONYMOUS":
        raise Unwanted(f"it is anonymous, from {address}: nobody was asked for a password")
    if master and master.lower() != user.lower() and settings["record_master_logins"] != "yes":
        names = master.decode("ascii", "replace"), user.decode("ascii", "replace")
        raise Unwanted("{} logged in as {} from {}: record_master_logins = no".format(*names, address))


def describe(user, text, service, settings, way=""):
    """What is recorded of a login: its keys, their value, how many seconds they last, and a line that tells of it.
    Without keys it is not recorded, for the reason in the line. Raises Unwanted or Failure.

    The script asks this at each login, and `pbs-policy record` for each that it is told of, in another `way` than by
    the script: it is a part of the word for the service.
    """
    suffix = "-" + way if way else ""
    is_word = service.isascii() and service.replace("-", "").replace("_", "").isalnum()
    if not is_word or len(service + suffix) > 32:
        service = "unknown"
    address, excluded = canonical(text, settings)
    if excluded == "link_local":
        raise Unwanted(f"{text} is link-local: it may never relay")
    services = settings["services"].replace(",", " ").split()
    if services and service not in services:
        excluded = excluded or "service_mismatch"  # it does not count, and must not replace a login that does
    about = "client_address=" + address + (" user=" + shown(user) if user else "") + " service=" + service
    if excluded:
        # A webmail logs in from loopback all the time: not a word, but where each login is told.
        return [], b"", 0, f"not_recorded {about} reason={excluded}"
    name = b"" if user.startswith(b"@") else user.lower()  # @example.com would pass for everybody there
    if name and settings["user_domain"] and b"@" not in name:
        name += b"@" + settings["user_domain"].encode().lower()  # ASCII only, as users.complete_user
    local_part, _, domain = name.rpartition(b"@")
    domains = settings["login_domains"].replace(",", " ").split()
    if domains and not (local_part and domain in [each.encode().lower() for each in domains]):
        raise Unwanted(f"user {shown(user)} from {address} is of no domain in login_domains")
    value = b"%d %s" % (time.time(), (service + suffix).encode()) + (b" " + user if user else b"")
    key = (settings["key_prefix"] + "login:" + address).encode()
    keys = [key]
    if name:
        keys.append(key + b"," + name)
    if local_part and domain and settings["sender_match"] == "domain":  # nothing else reads it
        keys.append(key + b",@" + domain)
    ttl = seconds(settings["ttl"])
    return keys, value, ttl, f"login {about} ttl={ttl}"


def log_login(settings, line):
    """Tell syslog (facility mail, info), which the login does not wait for: what it does not take at once is lost."""
    if settings["log_logins"] != "yes":
        return
    path = settings["log_to"].partition(":")[2] or "/dev/log"
    head = time.strftime("<22>%b %e %H:%M:%S pbs-postlogin[") + str(posix.getpid()) + "]: info: "
    syslog = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK)
    try:
        syslog.connect(path)
        syslog.send((head + line).encode())
    except OSError:
        pass
    finally:
        syslog.close()


def shown(user):
    """The user as a value of a line: printable, clipped, quoted where it could pass for more (pbs_policy/log.py)."""
    text = user[:2000].decode("utf-8", "surrogateescape")
    text = "".join([letter if letter.isprintable() else "?" for letter in text])
    if len(text) > 320:
        text = text[:317] + "..."
    if " " in text or '"' in text:
        text = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return text


def read_settings(file):
    """The settings that concern a login. Lines are main.cf's: comments, and continuations that begin with a blank."""
    settings = {
        "redis_url": "redis://127.0.0.1:6379/0",
        "redis_user": "",
        "redis_password_file": "",
        "sentinel_user": "",
        "sentinel_password_file": "",
        "redis_tls_ca_file": "",
        "redis_tls_cert_file": "",
        "redis_tls_key_file": "",
        "key_prefix": "pbs:",
        "log_logins": "no",
        "log_to": "stderr",
        "ttl": "30m",
        "ipv6_prefix": "128",
        "never_record": "",
        "record_master_logins": "no",
        "sender_match": "off",
        "services": "",
        "user_domain": "",
        "login_domains": "",
    }
    try:
        data = read_file(file or "/etc/pbs-policy/pbs-policy.conf")
    except FileNotFoundError:
        if file:
            raise
        return settings
    logical = []
    for line in data.split("\n"):
        text = line.strip(BLANKS)
        if not text or text[0] == "#":
            continue
        if line[0] in BLANKS and logical:
            name, equals, _ = text.partition("=")
            name = name.strip(BLANKS)
            if equals and name in settings:  # it would be lost in the value of the line before
                raise Failure(f"the settings: {name} has a blank in front, so it continues the line before")
            logical[-1] += " " + text
        else:
            logical.append(text)
    for line in logical:
        name, equals, value = line.partition("=")
        name = name.strip(BLANKS)
        if name in settings and equals:
            settings[name] = value.strip(BLANKS)
    refuse_conflicts(settings)
    return settings


def refuse_conflicts(settings):
    """What would silently not hold: a user without a password, TLS that is not spoken. See settings/conflicts.py."""
    for server in ("redis", "sentinel"):
        if settings[server + "_user"] and not settings[server + "_password_file"]:
            raise Failure(f"{server}_user is set without {server}_password_file")
    if not settings["redis_url"].startswith(("rediss", "valkeys")):
        for name in ("redis_tls_ca_file", "redis_tls_cert_file", "redis_tls_key_file"):
            if settings[name]:
                raise Failure(f"{name} is set, and redis_url is without TLS")
    elif settings["redis_tls_key_file"] and not settings["redis_tls_cert_file"]:
        raise Failure("redis_tls_key_file is set without redis_tls_cert_file")


def read_file(path):
    file = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        data = piece = posix.read(file, 65536)
        while piece and len(data) < 1 << 20:
            piece = posix.read(file, 65536)
            data += piece
        return data.decode("utf-8", "surrogateescape")  # a comment may be in Latin-1
    finally:
        posix.close(file)


def seconds(text):
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}.get(text[-1:], 0)
    number = text[:-1] if unit else text
    total = int(number) * (unit or 1) if number.isascii() and number.isdecimal() and len(number) < 10 else 0
    if not 0 < total <= 158112000:
        raise Failure(f"ttl = {text}: expected a time such as 90s, 30m, 8h")
    return total


def canonical(text, settings):
    """The address as the service will ask for it, and why it is never recorded, or "". See pbs_policy/address.py."""
    bits = settings["ipv6_prefix"]
    if not (bits.isascii() and bits.isdecimal() and 48 <= int(bits) <= 128):
        raise Failure(f"ipv6_prefix = {bits}: expected 48 to 128")
    text, percent, zone = text.partition("%")
    packed = pack(text)
    if percent and exclusion(packed) != "link_local":  # which Dovecot 2.4 shows with its interface
        raise Failure(f"IP has a zone id: {text}%{zone}")
    if packed[:12] in (V4_MAPPED, NAT64):
        packed = packed[12:]
    number, length = int.from_bytes(packed, "big"), len(packed) * 8
    address = _socket.inet_ntop(_socket.AF_INET if length == 32 else _socket.AF_INET6, packed)
    if length == 128 and int(bits) < 128 and not stands_alone(packed):
        network = number >> 128 - int(bits) << 128 - int(bits)
        address = _socket.inet_ntop(_socket.AF_INET6, network.to_bytes(16, "big")) + "/" + str(int(bits))
    excluded = exclusion(packed)
    for network in settings["never_record"].replace(",", " ").split():
        base, _, bits = network.partition("/")
        base = pack(base)
        if len(base) == len(packed):
            host_bits = length - int(bits or length)
            if number >> host_bits == int.from_bytes(base, "big") >> host_bits:
                excluded = excluded or "never_record"
    return address, excluded


def exclusion(packed):
    first = packed[0]
    if len(packed) == 4:
        if packed[:2] == b"\xa9\xfe":
            return "link_local"
        return {0: "unspecified", 127: "loopback"}.get(first, "multicast" if first >= 224 else "")
    if packed[:12] == bytes(12):
        return "loopback" if packed == LOOPBACK6 else "unspecified"
    if first == 0xFE and packed[1] & 0xC0 == 0x80:
        return "link_local"
    return "multicast" if first == 0xFF else ""


def stands_alone(packed):
    """Whether the neighbours of an IPv6 address are strangers to it: ipv6_prefix does not count for it."""
    return (
        packed.startswith(STRANGERS)
        or (packed[:3] == b"\x20\1\0" and packed[3] >> 4 in (1, 2))  # ORCHID, 2001:10::/28 and 2001:20::/28
        or packed[8:12] in (b"\0\0\x5e\xfe", b"\2\0\x5e\xfe")  # ISATAP
    )


def pack(text):
    try:
        return _socket.inet_pton(_socket.AF_INET6 if ":" in text else _socket.AF_INET, text)
    except (OSError, ValueError):
        raise Failure(f"not an IP address: {text}") from None


def tell_redis(settings, commands):
    """Send the commands in one go to the first server that takes them, each with +OK; anything else is a failure."""
    url = settings["redis_url"]
    if url.startswith(("rediss", "valkeys")):
        prepare_tls(settings)  # before the time begins, of which the first server has a share only
    deadline = time.monotonic() + REDIS_SECONDS
    kind, places, name, database = read_url(url)
    greeting = log_in(settings["redis_user"], settings["redis_password_file"])
    if database.strip("0"):
        greeting.append((b"SELECT", b"%d" % int(database)))
    commands = greeting + commands
    trouble = None
    for number, place in enumerate(places, 1):
        # Each gets its share of the time, since the first may be the one that is gone; whoever is the master has all.
        left = deadline - time.monotonic()
        if left <= 0 and number > 1:
            break
        share = deadline - left + left / (len(places) - number + (2 if name else 1))
        try:
            if name:
                place, share = find_master(place, name, settings, share), deadline
            refusal = tell(place, settings, commands, share)
            if refusal and kind == "cluster" and refusal[1].startswith(b"-MOVED "):
                host, _, port = refusal[1].split(b" ")[-1].decode().rpartition(":")
                place = f"[{host or split_place(place)[0]}]:{port}"
                refusal = tell(place, settings, commands, deadline)
            if not refusal:
                return
            command, line = refusal
            trouble = Failure("Redis answers to {}: {}".format(command[0].decode(), line.decode("ascii", "replace")))
        except TimeoutError:
            trouble = trouble or Failure(f"Redis at {url} did not answer within {REDIS_SECONDS} s")
        except (Failure, OSError, ValueError) as error:  # ValueError: what no server says where it names another
            trouble = error
    raise trouble


def log_in(user, file):
    if not file:
        return []
    password = read_file(file).split("\n")[0].rstrip("\r").encode()
    return [(b"AUTH", user.encode(), password) if user else (b"AUTH", password)]


def tell(place, settings, commands, deadline):
    """Send the commands to one server. Returns the first that is not answered +OK, and its answer, or None."""
    answer = converse(connect(place, "6379", settings, deadline), commands, len(commands), deadline)
    for command, line in zip(commands, answer):
        if line != b"+OK":
            return command, clean(commands[0], line)
    return None


def clean(greeting, line):
    if greeting[0] == b"AUTH" and greeting[-1] and greeting[-1][:8] in line:
        return b"an error that repeats the password"  # as a server that knows no AUTH does
    return line


def converse(connection, commands, lines, deadline):
    """Send commands, and return as many lines of what is answered."""
    send = b""
    for command in commands:
        send += b"*%d\r\n" % len(command)
        for part in command:
            send += b"$%d\r\n%s\r\n" % (len(part), part)
    patience(connection, deadline)
    connection.sendall(send)
    answer = b""
    while answer.count(b"\r\n") < lines and len(answer) < 65536:
        if answer.startswith((b"-", b"*-1")) and answer.endswith(b"\r\n"):
            break  # an error, or nil: there is no more to come that matters
        patience(connection, deadline)
        more = connection.recv(4096)
        if not more:
            raise Failure("Redis closed the connection")
        answer += more
    return answer.split(b"\r\n")


def read_url(url):
    """The kind of redis_url, its places, the master's name where they are Sentinels, and the database. See
    pbs_policy/store/redis_url.py."""
    scheme, _, rest = url.partition("://")
    if scheme == "unix" and rest.startswith("/"):
        path, _, database = rest.partition("?db=")
        return scheme, [path], "", database
    if "@" in rest:
        raise Failure("redis_url: a user and password do not belong into it")
    places, _, database = rest.partition("/")
    server, _, kind = scheme.partition("+")
    name = ""
    if kind == "sentinel":
        name, _, database = database.partition("/")
    is_one = kind == "" and "," not in places
    if server in ("redis", "rediss", "valkey", "valkeys") and places and (name or is_one or kind == "cluster"):
        return kind, places.split(","), name, database
    raise Failure(
        f"redis_url = {url}: expected redis[s]://HOST[:PORT][/DB], unix:///PATH, "
        "redis[s]+sentinel://... or redis[s]+cluster://..."
    )


def connect(place, port, settings, deadline):
    """A connection to one place of redis_url, or one that was found through it."""
    url = settings["redis_url"]
    if place[0] == "/":
        return open_first([(_socket.AF_UNIX, place)], url, deadline)
    connection = open_first(resolve(place, port, deadline), url, deadline)
    if url.startswith(("rediss", "valkeys")):
        return over_tls(connection, split_place(place)[0], deadline)
    return connection


def split_place(place):
    if place.startswith("["):
        host, _, port = place[1:].partition("]")
        return host, port[1:]
    host, _, port = place.partition(":")
    return host, port


def resolve(place, port, deadline):
    host, own_port = split_place(place)
    port = int(own_port or port)
    try:
        pack(host)
    except Failure:
        return ask_name_server(host, port, deadline)
    return [(_socket.AF_INET6 if ":" in host else _socket.AF_INET, (host, port))]


def ask_name_server(host, port, deadline):
    """In a thread, because nothing else can leave a getaddrinfo behind, no signal either: exec ends it."""
    answers = []

    def ask():
        try:
            # As bytes: for text, getaddrinfo loads a codec for international names, which costs the login 8 ms.
            answers.append(_socket.getaddrinfo(host.encode(), port, 0, _socket.SOCK_STREAM))
        except Exception as error:  # noqa: BLE001 - it is raised again where the answer is waited for
            answers.append(error)
        answered.release()

    answered = _thread.allocate_lock()
    answered.acquire()
    _thread.stack_size(262144)
    _thread.start_new_thread(ask, ())
    if not answered.acquire(True, seconds_left(deadline)):
        raise Failure(f"the name server does not answer for {host}")
    if isinstance(answers[0], Exception):
        raise answers[0]
    return [(each[0], each[4]) for each in answers[0]]


def open_first(targets, url, deadline):
    for family, target in targets:
        connection = _socket.socket(family, _socket.SOCK_STREAM)
        try:
            patience(connection, deadline)
            connection.connect(target)
            return connection
        except TimeoutError:
            raise
        except OSError as error:
            connection.close()
            trouble = str(error)
    raise Failure(f"Redis at {url} cannot be reached: {trouble}")


def prepare_tls(settings):
    import ssl  # costs a login 30 ms, and only where TLS is asked for

    context = TLS["context"] = ssl.create_default_context(cafile=settings["redis_tls_ca_file"] or None)
    if settings["redis_tls_cert_file"]:
        context.load_cert_chain(settings["redis_tls_cert_file"], settings["redis_tls_key_file"] or None)


def over_tls(connection, host, deadline):
    import socket

    plain = socket.socket(fileno=connection.detach())
    patience(plain, deadline)
    return TLS["context"].wrap_socket(plain, server_hostname=host)


def find_master(sentinel, name, settings, deadline):
    """The place of the master that a Sentinel names."""
    url = settings["redis_url"]
    try:
        connection = connect(sentinel, "26379", settings, deadline)
        greeting = log_in(settings["sentinel_user"], settings["sentinel_password_file"])
        answer = converse(connection, greeting, 1, deadline) if greeting else [b"+OK"]
        if answer[0] == b"+OK":
            answer = converse(connection, [(b"SENTINEL", b"get-master-addr-by-name", name.encode())], 5, deadline)
        elif greeting:
            answer[0] = clean(greeting[0], answer[0])
        if answer[0] == b"*2":
            return f"[{answer[2].decode()}]:{answer[4].decode()}"
        trouble = "Sentinel {} answers: {}".format(sentinel, answer[0].decode("ascii", "replace"))
    except (Failure, OSError, ValueError, IndexError) as error:
        trouble = str(error) or "no answer in time"
    raise Failure(f"no Sentinel of {url} names its master: {trouble}")


def patience(connection, deadline):
    connection.settimeout(seconds_left(deadline))


def seconds_left(deadline):
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
