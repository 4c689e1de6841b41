-- name: put_sum_additions
-- Keep what is to be added to the sums.
INSERT INTO sum_additions (body) VALUES (:body);

-- name: newest_sum_addition
-- The newest of what is to be added to the sums.
SELECT max(id) FROM sum_additions;

-- name: has_sum_additions
-- Whether something up to a number is still to be added.
SELECT 1 FROM sum_additions WHERE id <= :upto LIMIT 1;

-- name: sum_additions
-- The first of what is to be added to the sums.
SELECT id, body FROM sum_additions ORDER BY id LIMIT :limit;

-- name: delete_sum_additions
-- Forget what was added.
DELETE FROM sum_additions WHERE id IN (SELECT value FROM json_each(:ids));

-- name: drop_empty_sums
-- Forget sums of nothing: an object may have been an erased learner's alone.
DELETE FROM sums WHERE what = :what AND day = :day AND site = :site AND name = :name AND count <= 0;

-- name: sums
-- Daily sums of one kind, the newest day first.
SELECT day, site, name, object, count FROM sums
WHERE what = :what AND day >= :first AND day <= :last AND count > 0
  AND (day < :last OR (site, name, object) > (:after, :name, :object))
  AND (site IN (SELECT value FROM json_each(:sites)) OR :sites IS NULL)
  AND (name = :type OR :type IS NULL) AND (object = :about OR :about IS NULL)
ORDER BY day DESC, site, name, object LIMIT :limit;

-- name: sums_of_site
-- The same for one site: one search a day.
SELECT day, site, name, object, count FROM sums
WHERE what = :what AND day IN (SELECT value FROM json_each(:days)) AND site = :site AND count > 0
  AND (day < :last OR (name, object) > (:name, :object))
  AND (name = :type OR :type IS NULL) AND (object = :about OR :about IS NULL)
ORDER BY day DESC, name, object LIMIT :limit;

-- name: sums_grouped
-- Daily sums of one kind, added up over what they are not grouped by; the largest of each day first.
SELECT day, site, name, object, total
FROM (SELECT CASE WHEN :by_day > 0 THEN day ELSE 0 END AS day, CASE WHEN :by_site > 0 THEN site ELSE '' END AS site,
             CASE WHEN :by_type > 0 THEN name ELSE '' END AS name,
             CASE WHEN :by_object > 0 THEN object ELSE '' END AS object, sum(count) AS total
      FROM sums
      WHERE what = :what AND day IN (SELECT value FROM json_each(:days)) AND (site = :site OR :site IS NULL)
        AND (site IN (SELECT value FROM json_each(:sites)) OR :sites IS NULL)
        AND (name = :type OR :type IS NULL) AND (object = :about OR :about IS NULL)
      GROUP BY 1, 2, 3, 4) AS grouped
WHERE total > 0
  AND (day < :day OR (day = :day AND (total < :total OR (total = :total AND (site, name, object) > (:after, :name, :object)))))
ORDER BY day DESC, total DESC, site, name, object LIMIT :limit;
