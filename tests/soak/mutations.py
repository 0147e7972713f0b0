"""The mutants of mutants.py: what is taken out of the store, and what ought to notice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Edit:
    """In `file`, below the root of the repository, `old` becomes `new`."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """`commands` ought to fail: `pytest ...`, or a campaign's name with its options. The first one that
    does ends the run."""

    name: str
    edits: tuple[Edit, ...]
    commands: tuple[str, ...]


def _one(name: str, file: str, old: str, new: str, *commands: str) -> Mutant:
    return Mutant(name, (Edit(file, old, new),), commands)


_COMMIT, _CHECKPOINT = "index/commit.py", "index/checkpoint.py"
_TRANSACTION, _LOOKUP = "index/transaction.py", "index/lookup.py"
_CUT_UPDATES = "power_loss --trials 150 --workloads update"
_CUT_FILES = "power_loss --trials 250 --workloads checkpoint"
_KILL_FILES = "kill_calls --trials 120 --workloads checkpoint"

MUTANTS = (
    # -- durability ----------------------------------------------------------------------------
    _one(
        "synchronous_normal", "index/schema.py",
        '"PRAGMA synchronous=FULL"', '"PRAGMA synchronous=NORMAL"',
        _CUT_UPDATES,
    ),
    _one(
        "synchronous_off", "index/schema.py",
        '"PRAGMA synchronous=FULL"', '"PRAGMA synchronous=OFF"',
        _CUT_UPDATES,
    ),
    _one(
        "faiss_file_not_synced", _CHECKPOINT,
        "            os.fsync(file.fileno())\n", "",
        _CUT_FILES,
    ),
    _one(
        "directory_not_synced", _CHECKPOINT,
        "        os.replace(draft, directory / name)\n        sync_directory(directory)\n",
        "        os.replace(draft, directory / name)\n",
        _CUT_FILES,
    ),
    Mutant(
        "catalogue_before_rename",
        (
            Edit(_CHECKPOINT, "        os.replace(draft, directory / name)\n", ""),
            Edit(
                _COMMIT,
                "                transaction.catalogue(model.id, new)\n",
                "                transaction.catalogue(model.id, new)\n"
                "            draft = self.directory / f'{name}.tmp'\n"
                "            draft.rename(self.directory / name)\n",
            ),
        ),
        (_KILL_FILES,),
    ),
    Mutant(
        "faiss_file_written_in_place",
        (
            Edit(
                _COMMIT,
                'name = f"vectors-{uuid.uuid4().hex}.faiss"',
                'name = f"vectors-{model.id}.faiss"',
            ),
            Edit(_CHECKPOINT, 'draft = directory / f"{name}.tmp"', "draft = directory / name"),
            Edit(_CHECKPOINT, 'open(draft, "xb", opener', 'open(draft, "wb", opener'),
        ),
        ("kill_calls --trials 4 --workloads checkpoint",),
    ),
    _one(
        "swept_before_the_commit", _COMMIT,
        "                transaction.catalogue(model.id, new)\n            self.sweep_files()\n",
        "                transaction.catalogue(model.id, new)\n                self.sweep_files()\n",
        "pytest tests/index/test_mutants.py -k at_any_moment",
    ),
    _one(
        "acknowledged_before_the_commit", "ragembed/indexer.py",
        "                        incoming.row, model, self._vector_ids, incoming.replaces\n"
        "                    )\n",
        "                        incoming.row, model, self._vector_ids, incoming.replaces\n"
        "                    )\n"
        "                if self._listener is not None:\n"
        "                    paths = tuple(('added', i.row.path) for i in self._waiting)\n"
        "                    self._listener(Progress(0, 0, paths))\n",
        "kill_calls --trials 60 --workloads update",
    ),
    # -- transactions --------------------------------------------------------------------------
    Mutant(
        "no_transaction",
        (
            Edit(_COMMIT, 'connection.execute("BEGIN IMMEDIATE")', "pass"),
            Edit(
                _COMMIT,
                '                connection.execute("COMMIT")\n',
                "                if connection.in_transaction:\n"
                '                    connection.execute("COMMIT")\n',
            ),
        ),
        ("pytest tests/index/test_commit.py -k leaves_nothing",),
    ),
    Mutant(
        "migration_without_a_transaction",
        (
            Edit("index/migrate.py", '    connection.execute("BEGIN IMMEDIATE")\n', ""),
            Edit(
                "index/migrate.py",
                '        connection.execute("COMMIT")\n',
                '        connection.in_transaction and connection.execute("COMMIT")\n',
            ),
        ),
        ("pytest tests/index/test_migrate.py -k in_the_middle",),
    ),
    _one(
        "lexical_files_before_the_commit", _COMMIT,
        '                connection.execute("COMMIT")\n',
        '                self._follow(transaction)\n                connection.execute("COMMIT")\n',
        "kill_calls --trials 60 --workloads update",
    ),
    _one(
        "lock_not_taken", "index/lock.py",
        "        portalocker.lock(file, portalocker.LOCK_EX | portalocker.LOCK_NB)\n", "        pass\n",
        "pytest tests/index/test_commit.py -k 'exclude or holds_the_lock'",
    ),
    # -- ids and vectors -----------------------------------------------------------------------
    _one(
        "ids_used_again", "index/store.py",
        "return max(int(highest), int(row[0]) if row else 0)", "return int(highest)",
        "pytest tests/index/test_mutants.py -k given_twice",
    ),
    _one(
        "padding_kept", "index/vectors.py",
        "real = ids[0] >= 0", "real = ids[0] >= -1",
        "pytest tests/index/test_vectors.py",
    ),
    _one(
        "nan_accepted", "index/vectors.py",
        "bad = ~(np.abs(norms - 1.0) < 1e-2)", "bad = np.abs(norms - 1.0) >= 1e-2",
        "pytest tests/index/test_vectors.py",
    ),
    _one(
        "dead_vectors_shown", "index/vectors.py",
        "            chosen[self.dead[self.dead <= last]] = False\n", "            pass\n",
        "pytest tests/index/test_vectors.py",
    ),
    _one(
        "strays_not_recorded", _TRANSACTION,
        '            "JOIN window w ON w.passage_id = p.id WHERE p.document_id = ?",\n',
        '            "JOIN window w ON w.passage_id = p.id WHERE p.document_id = ? AND 0",\n',
        "pytest tests/index/test_sync.py tests/index/test_ingest.py tests/index/test_state_machine.py",
    ),
    _one(
        "vectors_ahead_are_no_strays", _TRANSACTION,
        "        if ahead:\n", "        if False:\n",
        "pytest tests/index/test_mutants.py -k came_ahead",
    ),
    _one(
        "used_vectors_swept", _TRANSACTION,
        '"(SELECT 1 FROM window WHERE vector_id = vector.id)"',
        '"(SELECT 1 FROM window WHERE vector_id = vector.id AND 0)"',
        "pytest tests/index/test_ingest.py tests/index/test_sync.py",
    ),
    # -- derived files follow ------------------------------------------------------------------
    _one(
        "new_vectors_not_followed", "index/derive.py",
        "        index = index.with_changes(ids, vectors)\n", "        pass\n",
        "pytest tests/index/test_snapshot.py -k each_commit",
    ),
    _one(
        "deletions_not_followed", "index/derive.py",
        "dead = dead[dead <= last]", "dead = dead[:0]",
        "pytest tests/index/test_snapshot.py -k counts_the_vectors",
    ),
    _one(
        "dead_vectors_not_logged", _TRANSACTION,
        """f"INSERT INTO deletion SELECT ?, 'vector', id FROM vector WHERE {unused}",""",
        """f"INSERT INTO deletion SELECT ?, 'vector', id FROM vector WHERE {unused} AND 0",""",
        "pytest tests/index/test_snapshot.py -k counts_the_vectors",
    ),
    _one(
        "floor_not_raised", _TRANSACTION,
        'self.set("floor", str(max(int(oldest), self._store.floor)))', "pass",
        "pytest tests/index/test_snapshot.py -k older_than",
    ),
    _one(
        "floor_raised_too_far", _TRANSACTION,
        'self.set("floor", str(max(int(oldest), self._store.floor)))',
        'self.set("floor", str(self.generation))',
        "pytest tests/index/test_mutants.py -k of_use",
    ),
    _one(
        "deletions_dropped_too_far", _TRANSACTION,
        'self._connection.execute("DELETE FROM deletion WHERE generation <= ?", (oldest,))',
        'self._connection.execute("DELETE FROM deletion WHERE generation <= ?", (self.generation,))',
        "pytest tests/index/test_mutants.py -k of_use",
    ),
    _one(
        "lexical_generation_ignored", "index/snapshot.py",
        "return snapshot if snapshot.generation == generation else None", "return snapshot",
        "pytest tests/index/test_commit.py -k catches_up",
    ),
    # -- checksums -----------------------------------------------------------------------------
    _one(
        "faiss_hash_not_checked", _CHECKPOINT,
        "return data if digest.digest() == sha256 else None", "return data",
        "pytest tests/index/test_vectors.py -k damaged_byte",
    ),
    _one(
        "lexical_crc_not_checked", "index/lexical.py",
        "return [file.name for file in named_files(path) if not _crc_matches(file)]", "return []",
        "pytest tests/index/test_lexical.py -k damaged_file",
    ),
    _one(
        "passage_crc_not_checked", _LOOKUP,
        "if row_crc(*row[:10]) == row[10] and row_crc(*row[11:25]) == row[25]:",
        "if row_crc(*row[11:25]) == row[25]:",
        "pytest tests/index/test_verify.py -k damaged_passage",
    ),
    _one(
        "document_crc_not_checked", _LOOKUP,
        "if row_crc(*row[:10]) == row[10] and row_crc(*row[11:25]) == row[25]:",
        "if row_crc(*row[:10]) == row[10]:",
        "pytest tests/index/test_mutants.py -k damaged_document",
    ),
    _one(
        "window_crc_not_checked", _LOOKUP,
        "            if window_crc(*row[:-1]) != row[-1]:\n", "            if False:\n",
        "pytest tests/index/test_mutants.py -k marks_nothing",
    ),
    _one(
        "vector_crc_without_its_id", "index/checksums.py",
        "zlib.crc32(_VECTOR.pack(id, model_id))", "zlib.crc32(_VECTOR.pack(0, model_id))",
        "pytest tests/index/test_mutants.py -k change_places",
    ),
    # -- models and purges ---------------------------------------------------------------------
    _one(
        "fingerprint_not_compared", "ragembed/loader.py",
        "if stored.fingerprint == embedder.fingerprint:", "if True:",
        "pytest tests/test_reembed.py -k what_cannot",
    ),
    _one(
        "model_switched_too_early", "ragembed/reembed.py",
        "    passages = windows = embedded = 0\n",
        "    passages = windows = embedded = 0\n"
        "    with writer.transaction() as transaction:\n"
        "        transaction.use_model(model)\n",
        "pytest tests/test_reembed.py -k 'old_model or interrupted'",
    ),
    Mutant(
        "purge_not_remembered",
        (
            Edit(
                "ragembed/removal.py",
                'transaction.set("purge", "pending")  # whoever writes next goes on, should we die',
                "pass",
            ),
            Edit(_COMMIT, '            transaction.set("purge", "pending")\n', ""),
        ),
        ("kill_calls --trials 40 --workloads purge",),
    ),
    _one(
        "purge_leaves_lexical_files", _COMMIT,
        "            self.sweep_files()\n            self.rebuild_lexical()\n",
        "            self.sweep_files()\n",
        "kill_calls --trials 6 --workloads purge",
    ),
    _one(
        "purge_leaves_faiss_files", _COMMIT,
        "transaction.drop_checkpoints(self._catalogued())", "transaction.drop_checkpoints([])",
        "kill_calls --trials 6 --workloads purge",
    ),
)  # fmt: skip
QUICK = ("nan_accepted", "migration_without_a_transaction")
