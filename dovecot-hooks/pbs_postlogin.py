# What pbs-postlogin records of a login, and how it tells Redis. Loaded by that script from beside it, never imported
# by the package; it runs in the time and under the last word of that script, which lets the session go on anyway.
#
# It stands alone, in modules that are built into the interpreter, since it runs at every login: `import socket`
# alone would double the cost. What it shares with the package (settings file, canonical addresses, keys and
# records) is held equal by tests that run the script and read back through the package.
import _socket
import posix
import time

REDIS_SECONDS = 0.3  # for all that is said to Redis
BLANKS = " \t\r\n\v\f"


class Failure(Exception):
    """Why this login is not recorded, as a sentence for Dovecot's log."""


def record_login(file, service, environment):
    """Record the login that Dovecot describes in `environment` (bytes), by the settings in `file`.

    Raises Failure, or whatever the system says.
    """
    settings = read_settings(file)
    if environment.get(b"MASTER_USER") and settings["record_master_logins"] != "yes":
        return
    if b"IP" in environment.get(b"USERDB_KEYS", b"").split():  # Dovecot lets a field of the user database replace it
        raise Failure("the user database has a field named ip, which hides the client's address")
    address = canonical(environment.get(b"IP", b"").decode("ascii", "replace"), settings)
    if address is None:
        return
    user = environment.get(b"USER", b"")
    if len(service) > 32 or not service.replace("-", "").replace("_", "").isalnum() or not service.isascii():
        service = "unknown"
    services = settings["services"].replace(",", " ").split()
    if services and service not in services:
        return  # it does not count, and must not stand in the way of a login that does
    value = b"%d %s" % (time.time(), service.encode()) + (b" " + user if user else b"")
    key = (settings["key_prefix"] + "login:" + address).encode()
    keys = [key]
    name = user.lower()
    if name and not name.startswith(b"@"):  # @example.com would pass for everybody there
        if settings["user_domain"] and b"@" not in name:
            name += b"@" + settings["user_domain"].encode().lower()  # ASCII only, as senders.complete_user
        keys.append(key + b"," + name)
        local_part, _, domain = name.rpartition(b"@")
        if local_part and domain and settings["sender_match"] == "domain":  # nothing else reads it
            keys.append(key + b",@" + domain)
    ttl = b"%d" % seconds(settings["ttl"])
    tell_redis(settings, [(b"SET", each, value, b"EX", ttl) for each in keys])
    if settings["log_logins"] == "yes":
        user = " user=" + shown(user) if user else ""
        path = settings["log_to"].partition(":")[2] or "/dev/log"
        log_login(path, "login client_address=" + address + user + " service=" + service + " ttl=" + ttl.decode())


def log_login(path, line):
    """Tell syslog (facility mail, info), which the login does not wait for: what it does not take at once is lost."""
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
            logical[-1] += " " + text
        else:
            logical.append(text)
    for line in logical:
        name, equals, value = line.partition("=")
        name = name.strip(BLANKS)
        if name in settings and equals:
            settings[name] = value.strip(BLANKS)
    return settings


def read_file(path):
    file = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        return posix.read(file, 1 << 20).decode("utf-8", "surrogateescape")  # a comment may be in Latin-1
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
    """The address as the service will ask for it, or None where it is never recorded. See pbs_policy/address.py."""
    bits = settings["ipv6_prefix"]
    if not (bits.isascii() and bits.isdecimal() and 48 <= int(bits) <= 128):
        raise Failure(f"ipv6_prefix = {bits}: expected 48 to 128")
    text, percent, zone = text.partition("%")
    packed = pack(text)
    if percent:
        if packed[0] == 0xFE:
            return None  # link-local, shown with its interface by Dovecot 2.4
        raise Failure(f"IP has a zone id: {text}%{zone}")
    if len(packed) == 16 and packed[:12] == b"\0\0\0\0\0\0\0\0\0\0\xff\xff":
        packed = packed[12:]
    first = packed[0]
    if len(packed) == 4:
        if first in (0, 127) or first >= 224 or packed[:2] == b"\xa9\xfe":
            return None
    elif packed[:12] == bytes(12) or first == 0xFF or (first == 0xFE and packed[1] & 0xC0 == 0x80):
        return None
    number = int.from_bytes(packed, "big")
    for network in settings["never_record"].replace(",", " ").split():
        base, _, length = network.partition("/")
        base = pack(base)
        if len(base) == len(packed):
            host_bits = len(base) * 8 - int(length or len(base) * 8)
            if number >> host_bits == int.from_bytes(base, "big") >> host_bits:
                return None
    if len(packed) == 4:
        return _socket.inet_ntop(_socket.AF_INET, packed)
    if int(bits) == 128:
        return _socket.inet_ntop(_socket.AF_INET6, packed)
    host_bits = 128 - int(bits)
    number = number >> host_bits << host_bits
    return _socket.inet_ntop(_socket.AF_INET6, number.to_bytes(16, "big")) + "/" + str(int(bits))


def pack(text):
    try:
        return _socket.inet_pton(_socket.AF_INET6 if ":" in text else _socket.AF_INET, text)
    except (OSError, ValueError):
        raise Failure(f"not an IP address: {text}") from None


def tell_redis(settings, commands):
    """Send the commands in one go. Each must be answered +OK; anything else is a failure."""
    deadline = time.monotonic() + REDIS_SECONDS
    server = settings["redis_url"]
    greeting, password = [], ""
    if settings["redis_password_file"]:
        password = read_file(settings["redis_password_file"]).split("\n")[0].rstrip("\r")
        greeting.append((b"AUTH", *[part.encode() for part in (settings["redis_user"], password) if part]))
    try:
        connection, database = connect(settings, deadline)
        if database.strip("0"):
            greeting.append((b"SELECT", b"%d" % int(database)))
        commands = greeting + commands
        answer = converse(connection, commands, len(commands), deadline)
    except TimeoutError:
        raise Failure(f"Redis at {server} did not answer within {REDIS_SECONDS} s") from None
    for command, line in zip(commands, answer):
        if line != b"+OK":
            if password and password[:8].encode() in line:
                line = b"an error that repeats the password"  # as a server that knows no AUTH does
            raise Failure("Redis answers to {}: {}".format(command[0].decode(), line.decode("ascii", "replace")))


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
    while answer.count(b"\r\n") < lines and len(answer) < 65536 and not answer.startswith(b"*-1"):
        patience(connection, deadline)
        more = connection.recv(4096)
        if not more:
            raise Failure("Redis closed the connection")
        answer += more
    return answer.split(b"\r\n")


def connect(settings, deadline):
    """A connection to the Redis of redis_url, and the database in it. See pbs_policy/redis_url.py."""
    url = settings["redis_url"]
    scheme, _, rest = url.partition("://")
    if "@" in rest and scheme != "unix":
        raise Failure("redis_url: a user and password do not belong into it")
    if scheme == "unix" and rest.startswith("/"):
        path, _, database = rest.partition("?db=")
        return open_first([(_socket.AF_UNIX, path)], url, deadline), database
    place, _, database = rest.partition("/")
    if scheme == "redis" and place:
        return open_first(resolve(place, "6379"), url, deadline), database
    if scheme == "rediss" and place:
        connection = open_first(resolve(place, "6379"), url, deadline)
        return over_tls(connection, place, settings, deadline), database
    if scheme == "redis+sentinel" and place and database:
        name, _, database = database.partition("/")
        return find_master(place.split(","), name.encode(), url, deadline), database
    raise Failure(f"redis_url = {without_login(url)}: expected redis[s]://HOST[:PORT][/DB], unix:///PATH, or redis+sentinel://...")


def without_login(url):
    scheme, _, rest = url.partition("://")
    return scheme + "://..." + rest[rest.rindex("@") :] if "@" in rest else url


def resolve(place, port):
    if place.startswith("["):
        host, _, own_port = place[1:].partition("]")
        own_port = own_port[1:]
    else:
        host, _, own_port = place.partition(":")
    port = int(own_port or port)
    try:
        pack(host)
    except Failure:
        # As bytes: for text, getaddrinfo loads a codec for international names, which costs the login 8 ms.
        found = _socket.getaddrinfo(host.encode(), port, 0, _socket.SOCK_STREAM)
        return [(each[0], each[4]) for each in found]
    return [(_socket.AF_INET6 if ":" in host else _socket.AF_INET, (host, port))]


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


def over_tls(connection, place, settings, deadline):
    import socket  # these two cost a login 30 ms, and only where TLS is asked for
    import ssl

    context = ssl.create_default_context(cafile=settings["redis_tls_ca_file"] or None)
    if settings["redis_tls_cert_file"]:
        context.load_cert_chain(settings["redis_tls_cert_file"], settings["redis_tls_key_file"] or None)
    host = place[1:].partition("]")[0] if place.startswith("[") else place.partition(":")[0]
    plain = socket.socket(fileno=connection.detach())
    patience(plain, deadline)
    return context.wrap_socket(plain, server_hostname=host)


def find_master(places, name, url, deadline):
    trouble = Failure(f"no Sentinel in {url}")
    for number, place in enumerate(places, 1):
        # Each gets its share of the time: the first may be the one that is gone.
        share = time.monotonic() + (deadline - time.monotonic()) / (len(places) - number + 2)
        try:
            sentinel = open_first(resolve(place, "26379"), url, share)
            answer = converse(sentinel, [(b"SENTINEL", b"get-master-addr-by-name", name)], 5, share)
            if len(answer) > 4 and answer[0] == b"*2":
                host, port = answer[2].decode(), answer[4].decode()
                return open_first(resolve(f"[{host}]", port), url, deadline)
            trouble = Failure("Sentinel {} answers: {}".format(place, answer[0].decode("ascii", "replace")))
        except (Failure, OSError) as error:
            trouble = error
    raise Failure("no Sentinel of {} names its master: {}".format(url, str(trouble) or "no answer in time"))


def patience(connection, deadline):
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection.settimeout(left)
