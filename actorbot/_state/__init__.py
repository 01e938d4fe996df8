"""What a session holds, and its written forms. No threads, no input or output.

In reading order: `values` (what may be kept besides JSON), `refusal` (what cannot be kept, and
where), `codec` (a session's values as bytes: the path of every event), `document` (the same as
JSON), `record` (what a store keeps of a session), `committed` (what a turn leaves behind, and write
ids), `session_id` (the check of an id), `typed` (`session_type=` a
dataclass), with `annotations`, `fields` (one dataclass) and `unions` (which of several it is).

Every room above may call these files: stores, journal, flushing, turns, residents, the manager.
"""
