%%% The state of a worker: mod_amphora_queue and, of its sessions, mod_amphora_seats.

%% A held message. It lives from its interception until it is delivered, stored or discarded. Its
%% element is in the table `held`, and nowhere else.
-record(h, {
    key,
    bare,
    luser,
    %% sender, as text and parsed
    from,
    from_jid,
    %% the address that it came with
    to,
    %% rules, offline, undelivered
    stage,
    stamp,
    bytes = 0,
    %% place in the pair's order, for ever
    ord,
    %% when it came, by the same count: what comes back takes an earlier place
    came,
    %% number in the user's storage list, at stage offline and undelivered
    seq,
    archived = false,
    has_rules = false,
    %% may have been sent before; was sent at all
    again = false,
    ever_sent = false,
    %% the link it was last sent on: {Component, Gen}; undefined if not at this stage yet
    gen,
    at = 0,
    outstanding = false,
    %% an answer that waits for those before it: {What, Sends, Silent}
    verdict,
    %% since when sessions have been writing it
    writing,
    %% handle of the spool, if it is there; it came from there
    spooled,
    loaded = false,
    %% of a settled send: somebody is told when it is resolved
    settle = false,
    may_see = false,
    %% who would have got it; who was listed
    takers,
    listed = [],
    voided = 0
}).

%% A message without rules that waits for its turn in the pair. In the spool, under `key`, it has the stage
%% `turn`: if it comes to be held itself, that takes its place there.
-record(f, {ord, message, since, bytes, key, stamp, spooled}).

%% A sender's full JID and a recipient's bare JID.
-record(pair, {
    %% ord -> key of those that are held
    q = gb_trees:empty(),
    %% ord of those to be sent, and of those at stage rules
    unsent = gb_sets:new(),
    rules = gb_sets:new(),
    %% {Ord, Key} of the last one that was ever sent, since the pair began anew
    last,
    followers = queue:new(),
    queued = false,
    busy = false,
    tries = 0,
    %% it pauses until then, from that ord on
    resume_at,
    paused_from
}).

-record(user, {
    bare,
    luser,
    pairs = #{},
    %% {seq, key} of what was sent to his storage and is undecided, in the order of arrival there
    storage = gb_sets:new(),
    %% what is to be done when all is decided that was there
    waiters = [],
    removal,
    draining = false
}).

%% done: {announce, Id, N}, {release, Id, N}, {tell, Pid, Message}
%% peers: other nodes of the cluster that have not said that they are done: node -> reference
-record(wait, {seq, peers = #{}, done}).

%% A session as far as the worker knows it: from the first reason to announce it.
-record(seat, {
    id,
    pid,
    monitor,
    bare,
    jid,
    n = 0,
    priority = 0,
    acks = false,
    read,
    %% settled: it may be announced; announced: the n that was, and when; answered: it is being handed over
    ready = false,
    announced = 0,
    announced_at = 0,
    done = 0,
    %% on which link's component it is counted as not answered at all
    counted = false,
    %% the link whose node was told of it: {Component, Gen}
    told = false,
    %% how often it came to another link: a node sees `n` and this
    moved = 0,
    %% it was asked to be announced anew, and has not answered
    renewing = false,
    %% {Batch, Ids, Time}: what is said of its end until the node answers
    ended
}).

-record(w, {
    ctx,
    host,
    index,
    name,
    users = #{},
    held = #{},
    urgent = queue:new(),
    %% component -> pairs that have something to send, in the order in which they could
    ready = #{},
    %% component -> users with a spool
    draining = #{},
    %% component -> elements for it, last first
    out = #{},
    out_bytes = 0,
    %% how many of them are intercepts; something is among them that is not to wait for more; a timer runs
    out_count = 0,
    out_now = false,
    lingers = false,
    %% handles of the spool that are of no use any more
    crossed = [],
    %% component -> {intercepts, bytes} that are unanswered
    flight = #{},
    in_flight = queue:new(),
    paused = #{},
    followers = queue:new(),
    links = [],
    seq = 0,
    stopping = false,
    seats = #{},
    monitors = #{},
    %% component -> how many are announced and not answered at all; who is to be announced
    announcements = #{},
    to_announce = #{},
    %% users of whom a session is ending, and in how many processes: bare -> number, monitor -> bare
    ending = #{},
    endings = #{},
    peers = []
}).
