//! What each image is made of.

use super::Image;

/// Raise it when the way of building changes, so that images in caches are built again.
pub(super) const VERSION: u32 = 1;

/// How an image is made.
#[derive(Debug, Clone)]
pub(super) struct Recipe {
    /// Its name.
    pub(super) reference: &'static str,
    /// The Debian packages it needs; those that they depend on come along.
    pub(super) packages: &'static [&'static str],
    /// Packages among these that it does not need: names, or beginnings of names with a `*`.
    pub(super) without: &'static [&'static str],
    /// Files that it does not need, as patterns of `tar --exclude`.
    pub(super) exclude: &'static [&'static str],
    /// Files of its own: path, mode, text.
    pub(super) files: &'static [(&'static str, u32, &'static str)],
    /// Directories of its own.
    pub(super) directories: &'static [&'static str],
    /// How it is started, as Dockerfile instructions.
    pub(super) changes: &'static [&'static str],
}

/// What installing and administering needs, and running does not.
pub(super) const NEVER: &[&str] = &[
    "adduser",
    "debconf",
    "dpkg",
    "init-system-helpers",
    "libc-l10n",
    "libfile-find-rule-perl",
    "libgdbm*",
    "libjson-perl",
    "libllvm*",
    "libnumber-compare-perl",
    "libpam-modules*",
    "libperl*",
    "libsemanage*",
    "libsepol*",
    "libtext-glob-perl",
    "libz3*",
    "locales",
    "lsb-base",
    "openssl",
    "passwd",
    "perl*",
    "postgresql-client-common",
    "postgresql-common",
    "psmisc",
    "sensible-utils",
    "ssl-cert",
    "sysvinit-utils",
    "tar",
    "ucf",
    "usrmerge",
    "dbconfig-common",
];

/// Documentation in any form.
pub(super) const DOCUMENTATION: &[&str] = &[
    "./usr/share/doc*",
    "./usr/share/man",
    "./usr/share/info",
    "./usr/share/locale",
    "./usr/share/lintian",
    "./usr/share/bug",
];

const POSTGRES: Recipe = Recipe {
    reference: "rehome-demo/postgres",
    packages: &["postgresql", "libc-bin", "busybox-static"],
    without: &[],
    exclude: &["*/bitcode", "*/llvmjit*", "./usr/share/postgresql/*/man"],
    files: &[
        ("bin/start", 0o755, include_str!("postgres.sh")),
        ("etc/demo/schema.sql", 0o644, include_str!("schema.sql")),
    ],
    directories: &["var/lib/postgresql/data"],
    changes: &[r#"CMD ["/bin/start"]"#, "EXPOSE 5432"],
};

const RSYSLOG: Recipe = Recipe {
    reference: "rehome-demo/rsyslog",
    packages: &["rsyslog", "rsyslog-pgsql", "busybox-static"],
    without: &[],
    exclude: &[],
    files: &[("bin/start", 0o755, include_str!("rsyslog.sh"))],
    directories: &["var/spool/rsyslog"],
    changes: &[r#"CMD ["/bin/start"]"#, "EXPOSE 5000"],
};

const WEB: Recipe = Recipe {
    reference: "rehome-demo/web",
    packages: &["php-cli", "php-pgsql", "busybox-static"],
    without: &["libmagic-mgc"],
    exclude: &[],
    files: &[
        ("bin/start", 0o755, include_str!("web.sh")),
        ("srv/index.php", 0o644, include_str!("index.php")),
    ],
    directories: &[],
    changes: &[
        r#"CMD ["/bin/start"]"#,
        "ENV PHP_CLI_SERVER_WORKERS=4",
        "EXPOSE 80",
    ],
};

/// The recipe of an image.
pub(super) fn of(image: Image) -> Recipe {
    match image {
        Image::Postgres => POSTGRES,
        Image::Rsyslog => RSYSLOG,
        Image::Web => WEB,
    }
}

impl Recipe {
    /// Whether a package of the closure is part of the image.
    pub(super) fn takes(&self, package: &str) -> bool {
        let named = |pattern: &&str| match pattern.strip_suffix('*') {
            Some(beginning) => package.starts_with(beginning),
            None => package == *pattern,
        };
        self.packages.contains(&package) || !NEVER.iter().chain(self.without).any(named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_left_out_by_name_or_by_beginning_unless_it_was_asked_for() {
        assert!(!POSTGRES.takes("perl-base"));
        assert!(!WEB.takes("libmagic-mgc"));
        assert!(POSTGRES.takes("postgresql-15") && POSTGRES.takes("postgresql"));
        assert!(RSYSLOG.takes("libpq5") && !RSYSLOG.takes("ucf"));
    }
}
