-- ragembed index, format 2. SQLite is the log and the only truth; FAISS and tantivy derive from it.
-- Ids are AUTOINCREMENT, so none is ever used twice; passages and vectors are never changed in place.
-- `crc` is a CRC-32 over what its row says, id included (see checksums.py): a row that is not what was
-- written is never served.

CREATE TABLE setting (            -- generation, chunking, model, floor of the deletion log, ...
  key TEXT PRIMARY KEY,
  value TEXT NOT NULL,
  crc INTEGER NOT NULL
) STRICT;

CREATE TABLE root (               -- what sync keeps up with
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  path BLOB NOT NULL,             -- absolute path of a folder, as the file system's bytes
  file BLOB NOT NULL DEFAULT x'', -- name of the only file, for a root that is one file
  scan TEXT NOT NULL,             -- ScanConfig as JSON
  crc INTEGER NOT NULL,
  UNIQUE (path, file)
) STRICT;

CREATE TABLE model (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  name TEXT NOT NULL,
  fingerprint TEXT NOT NULL UNIQUE,
  dimension INTEGER NOT NULL,
  precision TEXT NOT NULL CHECK (precision IN ('float16', 'float32')), -- of its stored vectors
  crc INTEGER NOT NULL
) STRICT;

CREATE TABLE document (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  root_id INTEGER REFERENCES root (id), -- NULL for a text that is no file
  path BLOB NOT NULL,             -- relative to the root, '/' between parts; a text's id
  sha256 BLOB NOT NULL,           -- of the file's bytes, or of the text as UTF-8
  size INTEGER NOT NULL,
  mtime_ns INTEGER NOT NULL,
  inode INTEGER NOT NULL,
  checked_ns INTEGER NOT NULL,    -- when these were read: a file changed right then is in doubt
  format TEXT NOT NULL,
  encoding TEXT NOT NULL,
  language TEXT NOT NULL,         -- of the analyser
  title TEXT NOT NULL,
  metadata TEXT NOT NULL,         -- JSON
  replaced INTEGER NOT NULL,
  passages INTEGER NOT NULL,
  windows INTEGER NOT NULL,       -- these three as the model in use reads it
  tokens INTEGER NOT NULL,
  unknown INTEGER NOT NULL,
  crc INTEGER NOT NULL            -- of all above but the four counts
) STRICT;
CREATE UNIQUE INDEX document_path ON document (ifnull(root_id, 0), path);
CREATE INDEX document_sha256 ON document (sha256);

CREATE TABLE source (             -- the text that spans refer to
  document_id INTEGER PRIMARY KEY REFERENCES document (id) ON DELETE CASCADE,
  text BLOB NOT NULL              -- UTF-8, zlib
) STRICT;

CREATE TABLE passage (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  document_id INTEGER NOT NULL REFERENCES document (id) ON DELETE CASCADE,
  position INTEGER NOT NULL,      -- 0, 1, ... within the document
  start INTEGER NOT NULL,         -- [start, end) in code points of the source text
  end INTEGER NOT NULL,
  first_line INTEGER,             -- from 1; NULL for extracted formats
  last_line INTEGER,
  page INTEGER,                   -- from 1; NULL where there are none
  heading TEXT NOT NULL,          -- JSON list
  text TEXT NOT NULL,
  crc INTEGER NOT NULL
) STRICT;
CREATE INDEX passage_document ON passage (document_id, position);

CREATE TABLE reading (            -- a passage as a model reads it; it has windows of that model then
  passage_id INTEGER NOT NULL REFERENCES passage (id) ON DELETE CASCADE,
  model_id INTEGER NOT NULL REFERENCES model (id),
  tokens INTEGER NOT NULL,
  unknown INTEGER NOT NULL,
  crc INTEGER NOT NULL,
  PRIMARY KEY (passage_id, model_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE vector (             -- by content: the same encoder input has one vector per model
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  model_id INTEGER NOT NULL REFERENCES model (id),
  key BLOB NOT NULL,              -- SHA-256 of the exact encoder input
  data BLOB NOT NULL,             -- float16 or float32, little-endian, unit length
  crc INTEGER NOT NULL,
  UNIQUE (model_id, key)
) STRICT;

CREATE TABLE window (
  passage_id INTEGER NOT NULL REFERENCES passage (id) ON DELETE CASCADE,
  model_id INTEGER NOT NULL REFERENCES model (id),
  position INTEGER NOT NULL,
  start INTEGER NOT NULL,         -- [start, end) in code points of the source text
  end INTEGER NOT NULL,
  vector_id INTEGER NOT NULL REFERENCES vector (id),
  crc INTEGER NOT NULL,
  PRIMARY KEY (passage_id, model_id, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX window_vector ON window (vector_id);

CREATE TABLE stray (              -- vectors that may have no window; the end of a run looks at them
  vector_id INTEGER PRIMARY KEY REFERENCES vector (id) ON DELETE CASCADE
) STRICT;

CREATE TABLE deletion (           -- what derived files have to forget, back to setting 'floor'
  generation INTEGER NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('passage', 'vector')),
  id INTEGER NOT NULL,
  PRIMARY KEY (generation, kind, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE checkpoint (         -- FAISS files that may be trusted, newest last
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  model_id INTEGER NOT NULL REFERENCES model (id),
  file TEXT NOT NULL,
  bytes INTEGER NOT NULL,
  sha256 BLOB NOT NULL,
  vectors INTEGER NOT NULL,
  max_vector_id INTEGER NOT NULL,
  generation INTEGER NOT NULL,
  kind TEXT NOT NULL,             -- what was built, as a FAISS factory string
  trained INTEGER NOT NULL,       -- vectors that were there when it was trained; 0: needs none
  probes INTEGER NOT NULL,        -- lists that a search looks into; 0: it has no lists
  crc INTEGER NOT NULL
) STRICT;

CREATE TABLE skipped (            -- what the last sync of each root left out
  root_id INTEGER NOT NULL REFERENCES root (id),
  path BLOB NOT NULL,
  code TEXT NOT NULL,
  cause TEXT NOT NULL
) STRICT;
