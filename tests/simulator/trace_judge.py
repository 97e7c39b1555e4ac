"""Judges a run by its trace alone, as somebody would who has `docs/reference/trace.md` and none of our code.

    python trace_judge.py TRACE.jsonl          one line per finding; exit 1 if there is one

It knows JSON and nothing of crdtsync: it imports none of it, and does not look into payloads.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path


class Judge:
    def __init__(self, lines):
        self.records = [json.loads(line) for line in lines]
        self.findings = []
        self.commits = {}  # "writer:number" -> its record
        self.seen = {}  # "writer:number" -> {writer: number}, whom it had seen, itself included
        self.facts = defaultdict(list)  # task -> (seq of its commit, id, event), in order of the trace
        self.disks = defaultdict(set)  # node -> "writer:number" of what stands on its disk
        self.had = defaultdict(set)  # "writer:number" -> nodes on whose disks it ever stood
        self.views = defaultdict(dict)  # task -> node -> its view
        self.heads = {}
        self.healed = []
        self.promised = {}  # task -> seq of the first answer that promised it

    def judge(self):
        self.shape()
        for record in self.records:
            handler = getattr(self, "on_" + record["kind"].replace(".", "_"), None)
            if handler is not None:
                handler(record)
        self.promises_kept()
        self.one_outcome()
        self.one_at_a_time()
        self.parents_first()
        return self.findings

    def wrong(self, what, record, text):
        self.findings.append(f"{what}: {text} (seq {record['seq']})")

    # Order ---------------------------------------------------------------------------------------

    def shape(self):
        at_us, sent = 0, {}
        for place, record in enumerate(self.records):
            if record["seq"] != place:
                self.wrong("order", record, f"is record {place}")
            if record["at_us"] < at_us:
                self.wrong("order", record, f"time goes back from {at_us} us")
            at_us = record["at_us"]
            if any(cause >= record["seq"] for cause in record["causes"]):
                self.wrong("order", record, "a cause comes after what it caused")
            if record["kind"] == "net.send":
                sent[record["id"]] = record["seq"]
            elif record["kind"] == "net.deliver" and record["causes"] != [sent.get(record["id"])]:
                self.wrong("order", record, f"{record['id']} arrives and was not sent")

    def on_commit(self, record):
        writer, _, number = record["id"].rpartition(":")
        number = int(number)
        before = self.commits.get(f"{writer}:{number - 1}")
        if number > 1 and before is None:
            self.wrong("order", record, f"{writer} has no commit {number - 1}")
        if before is not None and before["stamp"] >= record["stamp"]:
            self.wrong("order", record, f"the stamps of {writer} do not grow at {number}")
        seen = dict(self.seen.get(f"{writer}:{number - 1}", {}))
        seen.update(dict(record["deps"]))
        for other, upto in seen.items():
            earlier = self.commits.get(f"{other}:{upto}")
            if earlier is None:
                self.wrong("order", record, f"{record['id']} had seen {other}:{upto}, which nobody had written")
            elif earlier["stamp"] >= record["stamp"]:
                self.wrong("order", record, f"{record['id']} is stamped before {other}:{upto}, which it had seen")
        seen[writer] = number
        self.commits[record["id"]], self.seen[record["id"]] = record, seen
        for index, event in enumerate(record["events"]):
            if event.get("task"):
                self.facts[event["task"]].append((record["seq"], f"{record['id']}.{index}@{record['stamp']}", event))

    # Durability ----------------------------------------------------------------------------------

    def on_node_start(self, record):
        for writer, number in record["heads"]:
            self.stored(record, [[writer, upto] for upto in range(1, number + 1)])

    def on_disk_durable(self, record):
        self.stored(record, self.records[record["causes"][0]]["commits"])

    def on_disk_lost(self, record):
        for writer, number in record["commits"]:
            self.disks[record["node"]].discard(f"{writer}:{number}")

    def stored(self, record, commits):
        node = record["node"]
        for writer, number in commits:
            name = f"{writer}:{number}"
            home = writer.partition("/")[0]
            if node.partition("~")[0] != home and not any(at.partition("~")[0] == home for at in self.had[name]):
                self.wrong("durability", record, f"{node} has {name}, which was never on the disk of its writer")
            self.disks[node].add(name)
            self.had[name].add(node)

    def on_client_answer(self, record):
        if record["outcome"] != "ok" or self.records[record["causes"][0]]["op"] != "submit":
            return
        for answer in record["value"]:
            task = answer.get("id")
            if task is None:
                continue
            self.promised.setdefault(task, record["seq"])
            where = {commit_of(id) for id in self.submissions(task)}
            if not where & self.disks[record["node"]]:
                self.wrong("durability", record, f"{record['node']} promised {task} and does not have it on its disk")

    def submissions(self, task):
        return [id for _, id, event in self.facts[task] if event["event"] == "Submitted"]

    def policies(self, task):
        return {event["options"]["partition"] for _, _, event in self.facts[task] if event["event"] == "Submitted"}

    def on_run_heal(self, record):
        self.healed = record["regions"]

    def on_heads(self, record):
        self.heads[record["node"]] = record

    def on_view(self, record):
        self.views[record["id"]][record["node"]] = record

    def promises_kept(self):
        standing = set().union(*self.disks.values())
        for task, seq in self.promised.items():
            if not any(commit_of(id) in standing for id in self.submissions(task)):
                continue  # every disk that had it lost it
            for region in self.healed:
                if region not in self.views[task]:
                    self.wrong("durability", self.records[seq], f"{region} does not know {task}, which was promised")

    # One outcome ---------------------------------------------------------------------------------

    def one_outcome(self):
        groups = defaultdict(list)
        for node, heads in self.heads.items():
            groups[str(heads["applied"])].append(node)
        for nodes in groups.values():
            first = nodes[0]
            for node in nodes[1:]:
                if self.heads[node]["digest"] != self.heads[first]["digest"]:
                    self.wrong(
                        "one outcome", self.heads[node], f"{node} and {first} hold the same and differ in digest"
                    )
                for task, views in self.views.items():
                    if outcome_of(views.get(node)) != outcome_of(views.get(first)):
                        self.wrong("one outcome", self.heads[node], f"{node} and {first} differ about {task}")
        for task, views in self.views.items():
            for view in views.values():
                if view["state"] == "succeeded" and "quorum" not in self.policies(task):
                    self.right_winner(task, view)

    def right_winner(self, task, view):
        """The earliest claim among the successes that are not late and ran the work of the earliest submission."""
        applied = dict(self.heads[view["node"]]["applied"])
        facts = [(id, event) for _, id, event in self.facts[task] if known(id, applied)]
        claims = {id: event for id, event in facts if event["event"] == "Claimed"}
        submitted = {id: work_of(event) for id, event in facts if event["event"] == "Submitted"}
        work = submitted[min(submitted, key=stamp_of)]
        done = {
            event["attempt"]: event["value"]
            for _, event in facts
            if event["event"] == "Ended" and event["outcome"] == "ok" and not event["late"]
        }
        ran = [id for id in done if id in claims and submitted[claims[id]["submission"]] == work]
        winner = min(ran, key=stamp_of, default=None)
        if (winner, done.get(winner)) != (view["winner"], view["result"]):
            self.wrong(
                "one outcome", view, f"{view['node']} shows {view['winner']} as the winner of {task}, not {winner}"
            )

    # Exclusivity ---------------------------------------------------------------------------------

    def one_at_a_time(self):
        """A task that waits for its owner has no attempt begun while one of another region is open. Under a quorum each
        claim has a token, which is one region's; and the world outside never meets a smaller one after a larger one."""
        for task, facts in self.facts.items():
            policies = self.policies(task)
            still, holders = {}, {}
            for seq, id, event in facts:
                if event["event"] == "Ended":
                    still.pop(event["attempt"], None)
                elif event["event"] == "Claimed":
                    region = id.partition("/")[0]
                    others = [other for other in still if other.partition("/")[0] != region]
                    if others and policies == {"wait"}:
                        self.wrong("exclusivity", self.records[seq], f"{id} of {task} begins while {others[0]} is open")
                    if policies == {"quorum"} and region != holders.setdefault(event["token"], region):
                        self.wrong("exclusivity", self.records[seq], f"two regions claim {task} under {event['token']}")
                    if policies == {"quorum"} and not event["token"]:
                        self.wrong("exclusivity", self.records[seq], f"{id} of {task} begins without a token")
                    still[id] = seq
        tokens = defaultdict(int)
        for record in self.records:
            if record["kind"] == "effect.done" and record["fence"]:
                if record["fence"] < tokens[record["task"]]:
                    self.wrong("exclusivity", record, f"token {record['fence']} after {tokens[record['task']]}")
                tokens[record["task"]] = max(tokens[record["task"]], record["fence"])

    def parents_first(self):
        for facts in self.facts.values():
            after = {parent for _, _, event in facts if event["event"] == "Submitted" for parent, _ in event["after"]}
            for seq, id, event in facts:
                if event["event"] != "Claimed":
                    continue
                seen = self.seen[commit_of(id)]
                for parent in after:
                    if not any(
                        ended["event"] == "Ended" and ended["outcome"] == "ok" and known(at, seen)
                        for _, at, ended in self.facts[parent]
                    ):
                        self.wrong("order", self.records[seq], f"{id} begins before its parent {parent} has succeeded")


def commit_of(event_id):
    """The "writer:number" within "writer:number.index@stamp"."""
    return event_id.rpartition("@")[0].rpartition(".")[0]


def stamp_of(event_id):
    """What orders events: stamp, writer, number, index."""
    name, _, stamp = event_id.rpartition("@")
    commit, _, index = name.rpartition(".")
    writer, _, number = commit.rpartition(":")
    return int(stamp), writer, int(number), int(index)


def known(event_id, heads):
    writer, _, number = commit_of(event_id).rpartition(":")
    return int(number) <= heads.get(writer, 0)


def work_of(submitted):
    """What a submission asks for: two that ask for the same are one."""
    return submitted["name"], submitted["payload"], str(submitted["after"])


def outcome_of(view):
    return None if view is None else (view["state"], view["winner"], view["result"])


if __name__ == "__main__":
    with Path(sys.argv[1]).open(encoding="utf-8") as file:
        found = Judge(file).judge()
    print("\n".join(found[:50]))
    sys.exit(1 if found else 0)
