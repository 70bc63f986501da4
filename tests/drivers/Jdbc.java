// JDBC: see README.md.

import java.io.StringReader;
import java.io.StringWriter;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.atomic.AtomicBoolean;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;
import org.postgresql.copy.CopyManager;
import org.postgresql.util.PGobject;

final class Jdbc {
    private static final int PATIENCE_MS = 30_000;

    /** A connection that works, with what is prepared there. */
    private record Worker(
            Connection connection,
            PreparedStatement insert,
            PreparedStatement update,
            PreparedStatement look,
            PreparedStatement own) {
        static Worker on(Connection connection, String table) throws SQLException {
            return new Worker(
                    connection,
                    connection.prepareStatement("INSERT INTO " + table + " VALUES (?, ?, ?)"),
                    connection.prepareStatement("UPDATE " + table + " SET note = 'changed' WHERE id = ?"),
                    connection.prepareStatement("SELECT id, note FROM " + table + " WHERE id = ?"),
                    connection.prepareStatement("SELECT ?, ?, ?"));
        }

        /** An enum, an array of it and a composite with one, by their numbers. */
        void lookAtOwnTypes(String table, long round) throws SQLException {
            String[] moods = {"glad", "sad"};
            own.setObject(1, object(table + "_mood", "glad"));
            own.setArray(2, connection.createArrayOf(table + "_mood", moods));
            own.setObject(3, object(table + "_pair", "(sad," + round + ")"));
            try (ResultSet rows = own.executeQuery()) {
                check(rows.next() && rows.getString(1).equals("glad"), round);
                check(Arrays.equals((Object[]) rows.getArray(2).getArray(), moods), round);
                check(rows.getString(3).equals("(sad," + round + ")"), rows.getString(3));
                String type = rows.getMetaData().getColumnTypeName(1);
                check(type.equals(table + "_mood"), type);
            }
        }

        private static PGobject object(String type, String value) throws SQLException {
            PGobject object = new PGobject();
            object.setType(type);
            object.setValue(value);
            return object;
        }

        void insert(long id, long round, String note) throws SQLException {
            insert.setLong(1, id);
            insert.setLong(2, round);
            insert.setString(3, note);
            check(insert.executeUpdate() == 1, id);
        }

        String note(long id) throws SQLException {
            look.setLong(1, id);
            try (ResultSet rows = look.executeQuery()) {
                check(rows.next() && rows.getLong(1) == id, id);
                return rows.getString(2);
            }
        }
    }

    private final String table;
    private final Connection one;
    private final Connection other;
    private final Connection quiet;
    private final List<Worker> workers;
    private final PreparedStatement notify;

    private Jdbc(String[] arguments) throws SQLException {
        table = arguments[4];
        // Prepared at the server from the first execution on.
        String url = "jdbc:postgresql://" + arguments[0] + ":" + arguments[1] + "/" + arguments[3] + "?prepareThreshold=1";
        String password = System.getenv("PGPASSWORD");
        one = DriverManager.getConnection(url, arguments[2], password);
        other = DriverManager.getConnection(url, arguments[2], password);
        quiet = DriverManager.getConnection(url, arguments[2], password);
        workers = List.of(Worker.on(one, table), Worker.on(quiet, table));
        notify = other.prepareStatement("SELECT pg_notify(?, ?)");
    }

    private static void check(boolean fact, Object what) {
        if (!fact) {
            throw new AssertionError(what);
        }
    }

    private void play(long number) throws Exception {
        long first = number * 10;
        Worker worker = workers.get((int) (number % 2));
        Connection connection = worker.connection();
        connection.setAutoCommit(false);
        worker.insert(first, number, "new");
        worker.update().setLong(1, first);
        check(worker.update().executeUpdate() == 1, first);
        check(worker.note(first).equals("changed"), first);
        connection.commit();
        worker.insert(first + 9, number, "never");
        connection.rollback();
        connection.setAutoCommit(true);

        check(worker.note(first).equals("changed"), first);

        CopyManager copies = connection.unwrap(PGConnection.class).getCopyAPI();
        StringBuilder rows = new StringBuilder();
        List<String> expected = new ArrayList<>(List.of(Long.toString(first)));
        for (long row = 1; row < 6; row++) {
            rows.append(first + row).append('\t').append(number).append("\tcopied\n");
            expected.add(Long.toString(first + row));
        }
        check(copies.copyIn("COPY " + table + " FROM STDIN", new StringReader(rows.toString())) == 5, first);
        StringWriter out = new StringWriter();
        copies.copyOut("COPY (SELECT id FROM " + table + " WHERE round = " + number + " ORDER BY id) TO STDOUT", out);
        check(out.toString().lines().toList().equals(expected), out);

        notify.setString(1, table);
        notify.setString(2, Long.toString(number));
        notify.executeQuery().close();
        PGNotification[] heard = one.unwrap(PGConnection.class).getNotifications(PATIENCE_MS);
        check(heard.length == 1 && heard[0].getParameter().equals(Long.toString(number)), heard.length);

        worker.lookAtOwnTypes(table, number);
    }

    public static void main(String[] arguments) throws Exception {
        AtomicBoolean ended = new AtomicBoolean();
        Thread reader = new Thread(() -> {
            try {
                System.in.readAllBytes();
            } catch (java.io.IOException gone) {
                // Ended all the same.
            }
            ended.set(true);
        });
        reader.setDaemon(true);
        reader.start();
        Jdbc jdbc = new Jdbc(arguments);
        long number = 0;
        try (Connection one = jdbc.one; Connection other = jdbc.other; Connection quiet = jdbc.quiet;
                Statement statement = one.createStatement()) {
            statement.execute("LISTEN " + jdbc.table);
            for (; !ended.get(); number++) {
                jdbc.play(number);
                System.out.println("round " + number);
            }
            try (ResultSet rows = statement.executeQuery("SELECT count(*) FROM " + jdbc.table)) {
                check(rows.next() && rows.getLong(1) == number * 6, number);
            }
        }
        System.out.println("done " + number);
    }
}
