-- The plugin blocks of the applied files: a file that vanishes must not change the connections of
-- other files that use its plugins.

ALTER TABLE spcd.config_file ADD COLUMN plugins jsonb NOT NULL DEFAULT '{}';
COMMENT ON COLUMN spcd.config_file.plugins IS 'its plugin blocks: the source of each, by label';
