//go:build integration

package dbtest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const withPostgres = true

// keeper runs beside the server: it ends with its standard input, which the
// test binary holds open for as long as it lives.
const keeper = `
"$1/postgres" -D "$2/data" -k "$2" -h "" -c max_connections=200 >"$2/log" 2>&1 &
server=$!
cat >/dev/null
kill -QUIT $server
wait $server
rm -rf "$2"`

// cluster is a running server. It stops when life is closed, and so when the
// process ends.
type cluster struct {
	dir  string // the socket's folder
	life io.WriteCloser
}

// server is this test binary's PostgreSQL.
var server = sync.OnceValues(start)

// databases counts those made so far.
var databases atomic.Int64

func postgresURL(tb testing.TB) string {
	tb.Helper()
	running, err := server()
	if err != nil {
		tb.Fatal(err)
	}
	admin, err := sql.Open("pgx", address(running.dir, "postgres"))
	if err != nil {
		tb.Fatal(err)
	}
	name := "test" + strconv.FormatInt(databases.Add(1), 10)
	tb.Cleanup(func() {
		if _, err := admin.Exec("DROP DATABASE " + name + " WITH (FORCE)"); err != nil {
			tb.Errorf("drop database: %v", err)
		}
		admin.Close()
	})
	if _, err := admin.ExecContext(tb.Context(), "CREATE DATABASE "+name); err != nil {
		tb.Fatal(err)
	}
	return address(running.dir, name)
}

func address(dir, database string) string {
	return "postgres:///" + database + "?" + url.Values{"host": {dir}, "user": {"croft"}}.Encode()
}

// start makes a cluster and starts its server. Its folder has a short name, for
// a socket's path has a hundred characters at most.
func start() (*cluster, error) {
	bin, err := programs()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "croft-postgres-")
	if err != nil {
		return nil, err
	}
	as := &syscall.SysProcAttr{Setpgid: true} // an interrupt from the keyboard is for the test alone
	if os.Getuid() == 0 {                     // as root PostgreSQL refuses to run
		nobody, err := user.Lookup("nobody")
		if err != nil {
			return nil, err
		}
		uid, errUID := strconv.Atoi(nobody.Uid)
		gid, errGID := strconv.Atoi(nobody.Gid)
		if err := errors.Join(errUID, errGID, os.Chown(dir, uid, gid)); err != nil {
			return nil, err
		}
		as.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	run := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(name, args...)
		cmd.Dir, cmd.SysProcAttr = dir, as
		cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "HOME="+dir)
		return cmd
	}
	if out, err := run(filepath.Join(bin, "initdb"), "-D", filepath.Join(dir, "data"), "-U", "croft", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync").CombinedOutput(); err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("make a PostgreSQL cluster: %w: %s", err, out)
	}
	keep := run("/bin/sh", "-c", keeper, "croft-postgres", bin, dir)
	life, err := keep.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := keep.Start(); err != nil {
		return nil, fmt.Errorf("start PostgreSQL: %w", err)
	}
	return &cluster{dir, life}, ready(dir)
}

// ready waits until the server answers.
func ready(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	pool, err := sql.Open("pgx", address(dir, "postgres"))
	if err != nil {
		return err
	}
	defer pool.Close()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := pool.PingContext(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			said, _ := os.ReadFile(filepath.Join(dir, "log"))
			return fmt.Errorf("PostgreSQL does not answer: %w: %s", err, said)
		}
	}
}

// programs is the folder of Debian's newest PostgreSQL.
func programs() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", err
	}
	best, newest := "", 0
	for _, name := range found {
		bin := filepath.Dir(name)
		if version, err := strconv.Atoi(filepath.Base(filepath.Dir(bin))); err == nil && version > newest {
			best, newest = bin, version
		}
	}
	if best == "" {
		return "", errors.New("PostgreSQL's server is missing: there is no /usr/lib/postgresql/*/bin/initdb; install Debian's package postgresql (apt-get install postgresql, or setup.sh)")
	}
	return best, nil
}
