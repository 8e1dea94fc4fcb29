//! The objects of features: made, removed, and told of what changed.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use zbus::Connection;

use super::feature::{Feature, announced};
use super::{Announced, feature_path, tell};
use crate::api::Api;
use crate::feature::FeatureName;

/// Marks of the properties that were announced, in their order.
type Marks = Box<[u64]>;

/// A feature that has an object.
struct Kept {
    marks: Marks,
    /// The look in which it was seen last.
    look: u64,
}

/// All features that have objects, by domain and name.
#[derive(Default)]
pub(super) struct Shelf {
    features: BTreeMap<(String, FeatureName), Kept>,
    looks: u64,
}

/// What has to be told after a look.
#[derive(Default)]
struct News {
    new: Vec<(String, FeatureName)>,
    gone: Vec<(String, FeatureName)>,
    changed: Vec<((String, FeatureName), Announced)>,
}

fn marks(announced: &Announced) -> Marks {
    let mark = |(name, value): &(&str, zbus::Variant<'_>)| {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        value.hash(&mut hasher);
        hasher.finish()
    };
    announced.iter().map(mark).collect()
}

impl Shelf {
    /// Notes a feature as it is now.
    fn see(&mut self, key: (String, FeatureName), announced: Announced, news: &mut News) {
        let now = Kept {
            marks: marks(&announced),
            look: self.looks,
        };
        let Some(kept) = self.features.get_mut(&key) else {
            self.features.insert(key.clone(), now);
            news.new.push(key);
            return;
        };
        if kept.marks != now.marks {
            let differs = now.marks.iter().zip(&kept.marks).map(|(a, b)| a != b);
            let changed = announced.into_iter().zip(differs);
            let changed = changed.filter_map(|(p, differs)| differs.then_some(p));
            news.changed.push((key, changed.collect()));
        }
        *kept = now;
    }

    /// Looks at all features.
    async fn look(&mut self, api: &Arc<dyn Api>) -> News {
        self.looks += 1;
        let mut news = News::default();
        api.each_feature(&mut |row| {
            let announced = announced(&row);
            self.see((row.domain, row.spec.name), announced, &mut news);
        })
        .await;
        self.end(&mut news);
        news
    }

    /// Forgets those that were not seen in this look.
    fn end(&mut self, news: &mut News) {
        let look = self.looks;
        self.features.retain(|key, kept| {
            let seen = kept.look == look;
            if !seen {
                news.gone.push(key.clone());
            }
            seen
        });
    }

    /// Makes, removes and changes objects so that they are as the daemon says now.
    pub(super) async fn sync(
        &mut self,
        connection: &Connection,
        api: &Arc<dyn Api>,
    ) -> zbus::Result<()> {
        let news = self.look(api).await;
        let server = connection.object_server();
        for (domain, name) in news.gone {
            let path = feature_path(&domain, name.as_str())?;
            server.remove::<Feature, _>(path).await?;
        }
        for (domain, name) in news.new {
            let path = feature_path(&domain, name.as_str())?;
            let object = Feature::new(Arc::clone(api), domain, name);
            server.at(path, object).await?;
        }
        for ((domain, name), changed) in news.changed {
            let path = feature_path(&domain, name.as_str())?;
            tell::<Feature>(connection, path, changed).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> (String, FeatureName) {
        ("web".to_owned(), FeatureName::new(name).unwrap())
    }

    fn look(shelf: &mut Shelf, features: &[(&str, &str)]) -> News {
        let mut news = News::default();
        shelf.looks += 1;
        for (name, breach) in features {
            let announced = vec![
                ("Automatic", true.into()),
                ("Breach", (*breach).to_owned().into()),
            ];
            shelf.see(key(name), announced, &mut news);
        }
        shelf.end(&mut news);
        news
    }

    #[test]
    fn what_changed_is_told_once() {
        let mut shelf = Shelf::default();
        let news = look(&mut shelf, &[("a", ""), ("b", "")]);
        assert_eq!(news.new, [key("a"), key("b")]);
        assert!(news.changed.is_empty() && news.gone.is_empty());

        let news = look(&mut shelf, &[("a", ""), ("b", "cpu")]);
        let cpu = ("Breach", "cpu".to_owned().into());
        assert_eq!(news.changed, [(key("b"), vec![cpu])]);
        assert!(news.new.is_empty() && news.gone.is_empty());

        let news = look(&mut shelf, &[("b", "cpu")]);
        assert_eq!(news.gone, [key("a")]);
        assert!(news.changed.is_empty() && news.new.is_empty());

        // It came back.
        let news = look(&mut shelf, &[("a", ""), ("b", "cpu")]);
        assert_eq!(news.new, [key("a")]);
    }
}
