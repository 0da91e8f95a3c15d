package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// open starts the site and gives its URL and a function that waits for its end.
func open(t *testing.T) (string, *bytes.Buffer, func() error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var log bytes.Buffer // read after the end
	done := make(chan error, 1)
	go func() { done <- serve(ctx, listener, &log) }()
	wait := func() error { return <-done }
	t.Cleanup(cancel)
	return "http://" + listener.Addr().String(), &log, wait
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func post(t *testing.T, url, content string) (int, string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Post(url, "text/plain", strings.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestTheSiteAnswersCountsAndEnds(t *testing.T) {
	t.Setenv("GREETING", "hello")
	url, log, wait := open(t)
	for n := 1; n <= 2; n++ {
		status, body := get(t, url+"/")
		var page struct {
			Host     string   `json:"host"`
			Requests int      `json:"requests"`
			Env      []string `json:"env"`
		}
		if err := json.Unmarshal([]byte(body), &page); err != nil || status != http.StatusOK {
			t.Fatalf("answer %d: %s: %v", status, body, err)
		}
		if page.Requests != n || page.Host == "" || !strings.Contains(strings.Join(page.Env, "\n"), "GREETING=hello") {
			t.Errorf("page is %+v, want request %d, a host name and the environment", page, n)
		}
	}
	dir := t.TempDir()
	if status, body := get(t, url+"/write?mib=2&dir="+dir); status != http.StatusOK || body != "wrote 2 MiB\n" {
		t.Errorf("write: %d %q", status, body)
	}
	if status, body := post(t, url+"/take", strings.Repeat("x", 1000)); status != http.StatusOK || body != "took 1000 bytes\n" {
		t.Errorf("take: %d %q", status, body)
	}
	files, err := filepath.Glob(filepath.Join(dir, "web-*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("files %v, %v", files, err)
	}
	if info, err := os.Stat(files[0]); err != nil || info.Size() != 2<<20 {
		t.Errorf("file is %v, %v; want 2 MiB", info, err)
	}
	if status, body := get(t, url+"/write?mib=1&dir="+dir+"/absent"); status != http.StatusInsufficientStorage || !strings.HasPrefix(body, "wrote 0 MiB, then:") {
		t.Errorf("write to nowhere: %d %q", status, body)
	}
	if status, _ := get(t, url+"/alloc?mib=many"); status != http.StatusBadRequest {
		t.Errorf("alloc of many: %d", status)
	}
	if _, body := get(t, url+"/alloc?mib=3"); body != "holding 3 MiB\n" {
		t.Errorf("alloc: %q", body)
	}
	if status, _ := get(t, url+"/exit?code=300"); status != http.StatusBadRequest {
		t.Errorf("exit with 300: %d", status)
	}
	get(t, url+"/exit?code=7")
	if code, ok := errors.AsType[exit](wait()); !ok || code != 7 {
		t.Errorf("it ended with %v, want exit 7", code)
	}
	if text := log.String(); !strings.Contains(text, "request 1: GET / from 127.0.0.1:") || strings.Count(text, "request ") != 9 {
		t.Errorf("log is\n%s", text)
	}
}

func TestVerbsOfTheShell(t *testing.T) {
	folder := t.TempDir()
	for _, name := range []string{"one", "two"} {
		if err := os.WriteFile(filepath.Join(folder, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name, args, in, out string
		code                exit
		fails               bool
	}{
		{name: "words are said", args: "say a b", out: "a b\n"},
		{name: "input is copied", args: "cat", in: "text", out: "text"},
		{name: "a failure has its code", args: "fail 3", code: 3, fails: true},
		{name: "a folder is listed", args: "list " + folder, out: "one\ntwo\n"},
		{name: "a missing folder is not", args: "list " + folder + "/three", fails: true},
		{name: "a name is found", args: "find 127.0.0.1", out: "127.0.0.1\n"},
		{name: "nobody listens on port 0", args: "dial 127.0.0.1:0", fails: true},
		{name: "other words are refused", args: "dance", fails: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out bytes.Buffer
			err := run(t.Context(), strings.Fields(tc.args), strings.NewReader(tc.in), &out)
			code, _ := errors.AsType[exit](err)
			if (err != nil) != tc.fails || code != tc.code || out.String() != tc.out {
				t.Errorf("got %q, %v", out.String(), err)
			}
		})
	}
}

// lines gives what is written to it, a line at a time.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

func TestEchoSaysWhatItIsTold(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	said, done := make(lines, 1), make(chan error, 1)
	go func() { done <- run(ctx, []string{"echo", "0"}, nil, said) }()
	_, port, err := net.SplitHostPort(strings.TrimSpace(strings.TrimPrefix(<-said, "listening on ")))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	word := make([]byte, 4)
	if _, err := conn.Write([]byte("word")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, word); err != nil || string(word) != "word" {
		t.Errorf("it said %q, %v", word, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("it ended with %v", err)
	}
}
